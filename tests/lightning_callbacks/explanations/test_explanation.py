"""Explanations of several classes of samples are those of each class of each sample by itself."""

from collections import Counter

import pytest
import timm
import torch
from captum.attr import InputXGradient

from captum_transformer import AttnLRP, GenericAttentionRelevance, TransformerAttribution
from lightning_callbacks.explanations.explanation import explain
from lightning_callbacks.explanations.graphs import Graphs
from lightning_callbacks.samples.batch import Samples

# Samples 0 and 3 have two classes, 1 and 2 have one, which is given twice for 1; 4 has none.
PAIRS = [(0, 1), (1, 2), (2, 0), (3, 2), (1, 2), (0, 0), (3, 1)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = timm.models.VisionTransformer(
        img_size=8, patch_size=4, num_classes=3, embed_dim=16, depth=2, num_heads=2
    )
    return made.eval()


@pytest.mark.parametrize("size", [None, 1, 2])
@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, TransformerAttribution, AttnLRP, InputXGradient]
)
def test_each_pair_has_its_own_map(model, method, size):
    images = torch.randn(5, 3, 8, 8)
    found = explain(method(model), Samples((images,), None), PAIRS, internal_batch_size=size)
    assert set(found) == set(PAIRS)
    for row, class_id in PAIRS:
        own = method(model).attribute(images[row : row + 1], target=class_id)[0]
        others = method(model).attribute(images[row : row + 1], target=(class_id + 1) % 3)[0]
        distance = (found[row, class_id].attributions[0] - own).norm()
        assert distance < 1e-4 * own.norm()
        assert (others - own).norm() > 1e-2 * own.norm()


@pytest.mark.parametrize("graphs", [None, Graphs()])
def test_the_model_runs_once_for_all_classes_of_a_sample(model, graphs):
    ran = Counter()
    handle = model.register_forward_pre_hook(lambda _, args: ran.update([len(args[0])]))
    try:
        samples = Samples((torch.randn(5, 3, 8, 8),), None)
        explain(GenericAttentionRelevance(model), samples, PAIRS, graphs=graphs)
    finally:
        handle.remove()
    assert ran == {2: 2}  # twice with two samples: those with one class, and those with two
