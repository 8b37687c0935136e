"""Samples and features are told apart in any order, and rearranged back."""

import itertools

import pytest
import torch

from captum_transformer.trace.arrangement import arrangement
from captum_transformer.trace.axis import Axis

SIZES = {"s": 2, "t": 5, "h": 3, "d": 4}


@pytest.mark.parametrize("merged", [0, 1, 2])
@pytest.mark.parametrize("letters", ["".join(p) for p in itertools.permutations(SIZES)])
def test_dimensions_are_told_apart_in_any_order(letters: str, merged: int) -> None:
    x = torch.arange(120.0).view(*SIZES.values())
    dims = [list(SIZES).index(letter) for letter in letters]
    whole = tuple(SIZES[letter] for letter in letters)
    axes = {letter: Axis.of(whole, place) for place, letter in enumerate(letters)}
    moved = x.permute(dims).flatten(merged, merged + 1)
    found = arrangement(tuple(moved.shape), (axes["s"],), (axes["h"], axes["d"]))
    assert found is not None
    assert found.counts == (2, 5, 12)
    features_first = letters.index("d") < letters.index("h")
    expected = (x.mT if features_first else x).flatten(2)
    assert torch.equal(found.apart(moved), expected)
    assert torch.equal(found.together(expected, moved.shape), moved)


def test_a_dimension_of_size_one_stays_one() -> None:
    found = arrangement((3, 2, 5), (Axis(3, 2, 5),), (Axis(1, 3, 10),))
    assert found is not None
    x = torch.rand(3, 1, 5, 4)
    assert torch.equal(found.apart(x), x.permute(1, 2, 0, 3))
    assert torch.equal(found.together(found.apart(x), x.shape[:3]), x)


def test_axes_that_overlap_are_not_told_apart() -> None:
    assert arrangement((6, 5), (Axis(1, 6, 5),), (Axis(2, 3, 5),)) is None
    assert arrangement((6, 5), (Axis(1, 2, 15),), (Axis(1, 3, 10),)) is None
