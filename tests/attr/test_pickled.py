"""Methods can be pickled, to be sent to processes that are spawned (Windows, macOS)."""

import pickle

import pytest
import timm
import torch

import captum_transformer
from captum_transformer import AttnLRP, BiLRP, LayerRelevance, RelevancePatching
from tests.public_methods import OF_SCORES

OPTIONS = {
    "AttnLRP": {"gamma": 0.25, "conv_gamma": 0.25},
    "ConservativeLRP": {"gamma": 0.25, "hold_mean": True},
    "GIM": {"temperature": 3.0},
}


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3, img_size=32)


@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_a_method_that_was_pickled_gives_the_same(vit, name):
    method = getattr(captum_transformer, name)(vit, **OPTIONS.get(name, {}))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # AttentionGradCam is zero for a class if the gradients are negative.
    expected = torch.stack(method.attribute_targets(images, [0, 1, 2]))
    assert expected.any()
    found = pickle.loads(pickle.dumps(method)).attribute_targets(images, [0, 1, 2])
    assert torch.equal(torch.stack(found), expected)


def test_methods_of_two_inputs_and_of_layers_are_pickled(vit):
    for method in (BiLRP(vit), RelevancePatching(vit), LayerRelevance(AttnLRP(vit), "blocks.0")):
        assert type(pickle.loads(pickle.dumps(method))) is type(method)
