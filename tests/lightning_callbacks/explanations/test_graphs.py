"""Explanations that repeat are captured, with the same results."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from captum_transformer import AttnLRP, ConservativeLRP, TransformerAttribution
from captum_transformer.captured import Repeated
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.explanations.graphs import Graphs
from tests.captured.models import classifier as tokens_classifier
from tests.captured.models import values
from tests.lightning_callbacks.explained import explainer
from tests.lightning_callbacks.models import CLASSES, classifier
from tests.lightning_callbacks.runs import decode, fit, read


@pytest.fixture
def uncaptured(monkeypatch):
    """Which methods have run, be it to capture them."""
    ran = []
    run = Repeated._call

    def noted(self, *args, **kwargs):
        ran.append(type(self._method).__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Repeated, "_call", noted)
    return ran


def small_vit():
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **shape, num_classes=CLASSES)


METHODS = {"lrp": ConservativeLRP, "attn": AttnLRP}


@pytest.mark.parametrize(
    "explained",
    [{"forward": lambda model, x: model(x)}, {}, {"model": "model"}],
)
@pytest.mark.slow
def test_a_monitor_logs_the_same(pl, trainer_options, uncaptured, explained):
    runs, weights = [], []
    for captured in (False, True):
        monitor = AttributionMonitor(
            METHODS,
            classes=(0, 1),
            num_samples=2,
            captured=captured,
            on_error="raise",
            **explained,
        )
        module = classifier(pl, small_vit())
        runs.append(read(fit(pl, trainer_options, monitor, module, max_epochs=3)))
        weights.append(module.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    # The first batch as it is; the second by capturing it, which calls it twice. Then the graph.
    assert uncaptured == ["ConservativeLRP"] * 3 + ["AttnLRP"] * 3
    plain, by_graph = runs
    for tag in plain.Tags()["images"]:
        pictures = [[decode(event) for event in run.Images(tag)] for run in runs]
        assert len(pictures[0]) == 3
        assert all(map(np.array_equal, *pictures))
    for tag in plain.Tags()["scalars"]:
        if tag.startswith("attribution/"):
            numbers = [[event.value for event in run.Scalars(tag)] for run in (plain, by_graph)]
            assert str(numbers[0]) == str(numbers[1])


@pytest.mark.parametrize("tokens", [False, True])
def test_batches_of_one_shape_are_explained_by_a_graph(pl, uncaptured, tokens):
    model, images = small_vit(), torch.randn(13, 3, 8, 8)  # the last batch has one sample
    plain, by_graph = (
        explainer(pl, model, ConservativeLRP, tokens=tokens, captured=captured)
        for captured in (False, True)
    )
    for (batch,) in DataLoader(TensorDataset(images), batch_size=3):
        with torch.inference_mode():
            found = by_graph.predict_step(batch, 0).attributions["input_0"]
            expected = plain.predict_step(batch, 0).attributions["input_0"]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # The first, the second which is captured, and the last, which has another shape.
    assert len(uncaptured) == 4


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = tokens_classifier()

    def forward(self, x):
        return self.model(x + 0 * torch.randn_like(x))


def test_models_that_cannot_be_captured_are_explained_and_warned_of_once():
    method, graphs = AttnLRP(Random().eval()), Graphs()
    expected = method.attribute(values(), torch.tensor([1, 2, 3]))

    def explain():
        found = graphs.of(method, "attribute", {})(values(), torch.tensor([1, 2, 3]))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    explain()
    with pytest.warns(UserWarning, match="uncaptured: CaptureError: The model draws random"):
        explain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain()


def test_a_call_that_is_wrong_raises_as_it_does_uncaptured():
    call = Graphs().of(AttnLRP(tokens_classifier()), "attribute", {})
    for _ in range(4):
        call(values(), torch.tensor([1, 2, 3]))
        with pytest.raises(AssertionError, match="target"):
            call(values(), torch.tensor([1, 2, 77]))


def test_a_changed_model_and_other_methods_are_explained_as_they_are(uncaptured):
    model, graphs = tokens_classifier(), Graphs()

    def same(method):
        found = graphs.of(method, "attribute", {})(values(), torch.tensor([1, 2, 3]))
        expected = method.attribute(values(), torch.tensor([1, 2, 3]))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    for _ in range(3):
        same(AttnLRP(model))
    model.blocks[0].scale = 0.3
    same(AttnLRP(model))
    same(AttnLRP(model, gamma=0.25))
    same(AttnLRP(copy.deepcopy(model)))
    before = len(uncaptured)
    same(AttnLRP(model))
    assert len(uncaptured) > before
    before = len(uncaptured)
    same(AttnLRP(model))
    assert len(uncaptured) == before


class Counts(nn.Module):
    """Reads a number that is another one in each call."""

    def __init__(self):
        super().__init__()
        self.model, self.calls = tokens_classifier(), 0

    def forward(self, x):
        return self.model(x) * (1 + self.calls)


@pytest.mark.slow
def test_a_model_that_changes_from_call_to_call_is_rarely_captured(monkeypatch):
    captured, add = [], Repeated.add
    monkeypatch.setattr(Repeated, "add", lambda *given: captured.append(1) or add(*given))
    model, graphs = Counts().eval(), Graphs()
    method = AttnLRP(model)

    def explain_in_24_states():
        for _ in range(24):
            found = graphs.of(method, "attribute", {})(values(), torch.tensor([1, 2, 3]))
            expected = method.attribute(values(), torch.tensor([1, 2, 3]))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            model.calls += 1

    with pytest.warns(UserWarning, match=r"3 graphs no longer .* model\.calls is 7, and was 6"):
        explain_in_24_states()
    assert len(captured) == 5
    for _ in range(20):  # from now on it stays
        graphs.of(method, "attribute", {})(values(), torch.tensor([1, 2, 3]))
    assert len(captured) == 6


def test_graphs_are_not_copied():
    graphs = Graphs()
    method = TransformerAttribution(tokens_classifier())
    graphs.of(method, "attribute", {})
    assert not copy.deepcopy(graphs)._kept
    assert not pickle.loads(pickle.dumps(graphs))._kept
