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
from captum_transformer.errors import MixedSamplesError
from captum_transformer.rules.relevance.sparsity import _picked
from captum_transformer.trace import indices
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
def test_samples_that_change_places_are_refused(index, method):
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with pytest.raises(MixedSamplesError, match="through `getitem`"):
        method(Picking(index)).attribute(x, target=torch.tensor([0, 2]))


MIXED = [
    (slice(None), torch.zeros(2, 3).long()),
    (torch.zeros(2, 3).long(), slice(None), torch.tensor([1, 0, 1])),
    (torch.tensor([0, 1]), torch.tensor([2, 3])),
    (torch.ones(3, 5).bool(),),
    (slice(None), torch.ones(5, 7).bool(), torch.tensor(1)),
    (slice(None), torch.tensor([0, 2]), 0),
    (0, slice(None), torch.tensor([0, 2])),
    (slice(None), True, torch.tensor([1, 2])),
]


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_where_brackets_leave_the_dimensions():
    shape = (3, 5, 7, 11)
    compared = 0
    for index in (*INDICES, *MIXED):
        try:
            numbered = [
                torch.arange(n).view([-1 if d == dim else 1 for d in range(4)]).expand(shape)[index]
                for dim, n in enumerate(shape)
            ]
        except (IndexError, TypeError, ValueError):
            continue
        moved = indices.picked(with_tensors(index), 4).to
        for dim, numbers in enumerate(numbered):
            along = [d for d, n in enumerate(numbers.shape) if n > 1 and numbers.diff(dim=d).any()]
            if moved[dim] is None:
                assert not any(numbers.shape[d] == shape[dim] for d in along), index
            elif numbers.numel() and numbers.shape[moved[dim]] > 1:
                assert along == [moved[dim]], index
        compared += 1
    assert compared > 1000


@pytest.mark.parametrize("method", METHODS[2:])
def test_tokens_picked_by_indices_keep_their_features(method):
    """So that a product of them, behind a projection by `@`, is known to sum over features."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    projection = nn.Parameter(torch.randn(8, 6, dtype=torch.float64))
    last = torch.tensor([2, 4])

    def towers(x, y):
        return layer(x)[:, 0] @ projection, layer(y)[torch.arange(2), last] @ projection

    def by_product(x, y):
        x, y = towers(x, y)
        return (x @ y.T).diagonal()

    def by_entries(x, y):
        x, y = towers(x, y)
        return (x * y).sum(-1)

    inputs = torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double()
    found, expected = (method(f).attribute_tokens(inputs) for f in (by_product, by_entries))
    torch.testing.assert_close(found, expected)
    assert all(tokens.abs().sum() > 0 for tokens in expected)
