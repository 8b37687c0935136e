"""Entries that are picked with brackets, in every way that torch knows."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.rules.relevance.sparsity import _picked
from captum_transformer.trace.axis import View
from captum_transformer.trace.indices import with_tensors
from tests.trace.derivatives import derivative_of_the_tape

METHODS = [
    ConservativeLRP,
    AttnLRP,
    GenericAttentionRelevance,
    lambda model: TransformerAttribution(model, propagate_to_input=True),
]
PARTS = [
    0,
    -1,
    np.int64(1),
    slice(None),
    slice(1, None),
    None,
    ...,
    True,
    [0],
    [1, 0],
    [],
    [True, False],
    [np.int64(1), 0],
    [[0, 1], [1, 0]],
    (0, 1),
    range(1),
    np.array([1, 0]),
    np.array([0, 1], np.int32),
    np.array([False, True]),
    np.array(1),
    torch.tensor(1),
    torch.tensor([0, 1]),
]
INDICES = [
    *PARTS,
    *(list(parts) for parts in itertools.product(PARTS, repeat=2)),
    *itertools.product(PARTS, repeat=2),
    *((first, ..., last) for first, last in itertools.product(PARTS, repeat=2)),
]
# Two dots are one too many, though torch lets some pass.
INDICES = [
    i for i in INDICES if not isinstance(i, (list, tuple)) or list(map(id, i)).count(id(...)) < 2
]
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")


def picked(x, index):
    """What torch picks; None if it refuses the index."""
    try:
        return x[index]
    except (IndexError, RuntimeError, TypeError, ValueError):
        return None


def test_lists_and_arrays_mean_what_torch_reads_in_them():
    x = torch.arange(24).reshape(2, 3, 4)
    right = 0
    for index in INDICES:
        expected, found = picked(x, index), picked(x, with_tensors(index))
        assert (found is None) == (expected is None), index
        if expected is not None:
            assert torch.equal(found, expected), index
            assert found._is_view() == expected._is_view(), index
            right += 1
    assert right > 500


def test_relevance_goes_back_where_entries_were_picked():
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    right = 0
    for index in INDICES[::3]:
        expected = picked(x, index)
        if expected is None or not expected.numel():
            continue
        weights = torch.arange(1.0, expected.numel() + 1).reshape(expected.shape)
        read, written = (
            derivative_of_the_tape(function, x)
            for function in (
                lambda x, i=index, w=weights: (x[0][i] * w).sum().reshape(1, 1),
                lambda x, i=index, w=weights: _written(x[0], i, w).sum().reshape(1, 1),
            )
        )
        for found, by_autograd in (read, written):
            torch.testing.assert_close(found, by_autograd, msg=lambda m, i=index: f"{i}: {m}")
        right += 1
    assert right > 100


def _written(x, index, weights):
    copy = x * 1
    copy[index] = x[index].detach() * weights
    return copy


def test_no_place_of_a_view_is_left_out():
    x = torch.arange(24).reshape(2, 3, 4)
    for index in INDICES:
        view = picked(x, index)
        if view is None or not view._is_view():
            continue
        for place in _picked(View.of(view), tuple(x.shape)):
            outside = set(x.flatten().tolist()) - set(place.of(x).flatten().tolist())
            assert outside.isdisjoint(view.flatten().tolist()), index


class Picking(nn.Module):
    """A small Transformer that picks samples and tokens before its head."""

    def __init__(self, index):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.index = index
        self.double().eval()

    def forward(self, x):
        return self.head(self.layer(x)[self.index].mean(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("index", "same"),
    [
        (lambda n: list(range(n)), lambda n: slice(None)),
        (np.arange, lambda n: slice(None)),
        (range, lambda n: slice(None)),
        (lambda n: [True] * n, lambda n: slice(None)),
        (lambda n: (slice(None), [1, 2]), lambda n: (slice(None), slice(1, 3))),
        (lambda n: [slice(None), [1, 2]], lambda n: (slice(None), slice(1, 3))),
        (lambda n: (..., [1, 2], slice(None)), lambda n: (slice(None), slice(1, 3))),
        (lambda n: (slice(None), np.array([1, 2])), lambda n: (slice(None), slice(1, 3))),
    ],
)
def test_a_list_picks_as_a_slice_does(index, same, samples, method):
    x = torch.randn(samples, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = method(Picking(index(samples))).attribute(x, target=1)
    expected = method(Picking(same(samples))).attribute(x, target=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", [ConservativeLRP, AttnLRP])
@pytest.mark.parametrize("index", [[1, 0], np.array([1, 0]), torch.tensor([1, 0])])
def test_samples_may_change_places(index, method):
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = method(Picking(index)).attribute(x, target=torch.tensor([0, 2]))
    expected = method(Picking(slice(None))).attribute(x, target=torch.tensor([2, 0]))
    torch.testing.assert_close(found, expected)
