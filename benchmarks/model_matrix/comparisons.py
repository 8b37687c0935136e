"""What must give the same map: a sample by itself, other implementations, single precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.model_matrix.family import SAMPLES, Case
from benchmarks.model_matrix.methods import MAGNIFY, METHODS, THROUGH_ALL

_EXACT, _ROUNDED = 1e-6, 1e-3
# How many times as much as rounding of the weights alone may rounding of all steps change.
_STEPS = 32
# Where attention is written out, some models take its softmax in single precision.
_BY_SOFTMAX = 1e-5


@dataclass(frozen=True)
class Ways:
    """One call of a family, and the same call in other ways.

    Attributes:
        explained: the call, in double precision.
        others: the same with other implementations of attention.
    """

    explained: Case
    others: list[Case]

    @cached_property
    def single(self) -> Case:
        """The call in single precision."""
        case = self.explained
        return replace(case, model=copy.deepcopy(case.model)).to(torch.float32)


Comparison: TypeAlias = Callable[[str, list[Tensor], Ways], Iterator[str]]


def by_itself(name: str, found: list[Tensor], ways: Ways) -> Iterator[str]:
    """Where a sample by itself, and other implementations of attention, give another map.

    The implementations explain this sample by itself. Where one of them says what was found in the
    batch, so does the explained implementation: it is asked only if they differ.
    """
    method, asked = METHODS[name], _asked(name)
    close = _ROUNDED if name in MAGNIFY else _EXACT

    def alone(implementation: Case) -> list[Tensor]:
        return parts_of(implementation.sample(asked).attribute(method))

    def apart(one: list[Tensor], other: list[Tensor]) -> float:
        """Between what is said of the sample, as a share of the largest value of the batch."""
        place = torch.tensor([asked])
        replaced = [
            [part.index_copy(0, place, of_one) for part, of_one in zip(found, parts, strict=True)]
            for parts in (one, other)
        ]
        return difference(*replaced)

    in_batch = [part[asked : asked + 1] for part in found]
    said = [alone(implementation) for implementation in ways.others]
    if said and all(apart(one, in_batch) <= close for one in said):
        return
    single_sample = alone(ways.explained)
    if (far := apart(in_batch, single_sample)) > close:
        yield f"differs by {far:.0e} between a batch and a sample of it by itself"
    for one in said:
        if (far := apart(one, single_sample)) > max(close, _BY_SOFTMAX):
            yield f"differs by {far:.0e} between implementations of attention"


def _asked(method: str) -> int:
    """The sample that is explained by itself: from method to method they take turns."""
    return list(METHODS).index(method) % SAMPLES


def in_single_precision(name: str, found: list[Tensor], ways: Ways) -> Iterator[str]:
    """Where single precision gives another map."""
    method, single = METHODS[name], ways.single
    rounded = difference(parts_of(single.attribute(method)), found)
    allowed = 0.2 if name == THROUGH_ALL else _ROUNDED
    if rounded > allowed and name in MAGNIFY:
        weights = replace(single, model=copy.deepcopy(single.model)).to(torch.float64)
        allowed = max(allowed, _STEPS * difference(parts_of(weights.attribute(method)), found))
    if rounded > allowed:
        yield f"differs by {rounded:.0e} between single and double precision"


COMPARISONS: tuple[Comparison, ...] = (by_itself, in_single_precision)


def parts_of(relevance: Any) -> list[Tensor]:
    if isinstance(relevance, Mapping):
        return list(relevance.values())
    return list(relevance) if isinstance(relevance, tuple) else [relevance]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest one, as a share of the largest value of all."""
    largest = max(float(part.abs().max()) for part in expected) or 1.0
    pairs = zip(found, expected, strict=True)
    return max(float((f.double() - e.double()).abs().max()) for f, e in pairs) / largest
