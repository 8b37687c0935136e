import numpy as np
import pytest
import torch
from captum.attr import InputXGradient
from scipy.stats import linregress
from torch import nn

from captum_transformer import ConservativeLRP
from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics import Conservation, conservation
from tests.metrics.by_hand import classifier


def test_figures_are_those_of_scipy():
    torch.manual_seed(0)
    outputs, relevance = torch.randn(2, 30, dtype=torch.float64)
    points = Conservation(outputs, relevance)
    expected = linregress(outputs, relevance)
    assert points.slope().item() == pytest.approx(expected.slope)
    assert points.correlation().item() == pytest.approx(expected.rvalue)
    assert points.difference().item() == pytest.approx(np.abs((outputs - relevance).numpy()).mean())


def test_a_method_that_conserves_lies_on_the_diagonal():
    torch.manual_seed(0)
    layers = nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)
    model, x = nn.Sequential(*layers).double(), torch.randn(10, 6).double()
    target = torch.arange(10) % 3
    relevance = InputXGradient(model).attribute(x, target)
    points = conservation(model, x, relevance, target)
    torch.testing.assert_close(points.outputs, model(x)[range(10), target])
    torch.testing.assert_close(points.relevance, points.outputs)
    assert points.slope().item() == pytest.approx(1)
    assert points.correlation().item() == pytest.approx(1)
    twice = conservation(model, x, 2 * relevance, target)
    assert twice.slope().item() == pytest.approx(2)


def test_relevance_of_several_inputs_by_name_is_summed_up():
    model = classifier()
    ids = torch.randint(30, (3, 5))
    inputs = {"ids": model.embed(ids).detach()}
    further = {"mask": torch.ones(3, 5)}
    maps = ConservativeLRP(model).attribute(inputs, 1, additional_forward_kwargs=further)
    points = conservation(model, inputs, maps, 1, additional_forward_kwargs=further)
    torch.testing.assert_close(points.relevance, maps["ids"].sum((1, 2)))
    torch.testing.assert_close(points.outputs, model(**inputs, **further)[:, 1].detach())

    def of_two(a, b):
        return (a * b.sum(1, keepdim=True)).sum(1)

    a, b = torch.rand(4, 2), torch.rand(4, 3)
    both = conservation(of_two, (a, b), (a, b))
    torch.testing.assert_close(both.relevance, a.sum(1) + b.sum(1))
    halves = [conservation(of_two, (a[s], b[s]), (a[s], b[s])) for s in (slice(1), slice(1, 4))]
    torch.testing.assert_close(Conservation.cat(halves).outputs, both.outputs)


def test_attributions_of_other_samples_are_refused():
    x = torch.rand(4, 3)
    with pytest.raises(InvalidInputError, match="4 samples"):
        conservation(nn.Linear(3, 2), x, x[:2], 1)
