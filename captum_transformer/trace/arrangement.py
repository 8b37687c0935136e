"""Separates samples, features and everything else, in whichever order and dimensions they lie."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from captum_transformer.trace.axis import Axis

_SAMPLES, _REST, _FEATURES = range(3)


class Arrangement(NamedTuple):
    """How dimensions are split into parts that belong to samples, to features or to neither.

    >>> import torch
    >>> shape = (6, 5)  # heads and samples in one dimension, and tokens
    >>> arranged = arrangement(shape, (Axis(3, 2, 5),), (Axis(1, 3, 10),))
    >>> arranged.counts
    (2, 5, 3)
    >>> tuple(arranged.apart(torch.rand(6, 5, 4)).shape)
    (2, 5, 3, 4)

    Attributes:
        shape: the lengths of the dimensions.
        parts: the lengths of the parts of each dimension.
        roles: what the parts belong to, counted over all dimensions: 0 for samples, 2 for
            features, 1 for neither.
    """

    shape: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    roles: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of samples, of entries that belong to neither, and of features."""
        return tuple(self._counts([n for parts in self.parts for n in parts]))

    @property
    def has_rest_behind_features(self) -> bool:
        """Whether some of the entries that belong to neither lie inside of features."""
        first = self.roles.index(_FEATURES) if _FEATURES in self.roles else len(self.roles)
        return _REST in self.roles[first:]

    def apart(self, tensor: Tensor) -> Tensor:
        """Rearranges a tensor ``(*shape, ...)`` to ``(samples, rest, features, ...)``.

        Dimensions of size one stay so, as of what is the same for all samples.
        """
        lead, further = tensor.shape[: len(self.shape)], tensor.shape[len(self.shape) :]
        parts = self._parts(lead)
        ordered = self._order()
        split = tensor.reshape(*parts, *further)
        split = split.permute(*ordered, *range(len(parts), split.dim()))
        return split.reshape(*self._counts(parts), *further)

    def together(self, tensor: Tensor, lead: Sequence[int]) -> Tensor:
        """Reverses `apart`.

        Args:
            tensor: a tensor ``(samples, rest, features, ...)``.
            lead: the lengths of the first dimensions of the result; one where they are broadcast.
        """
        parts, ordered, further = self._parts(lead), self._order(), tensor.shape[3:]
        split = tensor.reshape(*(parts[place] for place in ordered), *further)
        back = [ordered.index(place) for place in range(len(parts))]
        return split.permute(*back, *range(len(parts), split.dim())).reshape(*lead, *further)

    def _parts(self, lead: Sequence[int]) -> list[int]:
        """Returns the lengths of all parts of dimensions of which some may be broadcast."""
        sizes = zip(lead, self.shape, self.parts, strict=True)
        return [n if own == whole else 1 for own, whole, parts in sizes for n in parts]

    def _order(self) -> list[int]:
        return sorted(range(len(self.roles)), key=lambda place: self.roles[place])

    def _counts(self, parts: Sequence[int]) -> list[int]:
        sizes = list(zip(parts, self.roles, strict=True))
        return [math.prod(n for n, own in sizes if own == role) for role in range(3)]


@lru_cache(maxsize=4096)
def arrangement(
    shape: tuple[int, ...], samples: tuple[Axis, ...], features: tuple[Axis, ...]
) -> Arrangement | None:
    """Returns how samples and features lie in dimensions, or None if that can't be told apart.

    Args:
        shape: the lengths of the dimensions.
        samples: axes of the samples; those of one entry make no difference.
        features: axes of features, which may overlap.
    """
    if not math.prod(shape):
        return None
    roles = ((_SAMPLES, samples), (_FEATURES, features))
    inside = [(a.inner, a.inner * a.size, role) for role, axes in roles for a in axes if a.size > 1]
    cuts = {end for low, high, _ in inside for end in (low, high)}
    parts, found, end = list[tuple[int, ...]](), list[int](), math.prod(shape)
    for length in shape:
        start, end = end, end // length
        steps = sorted({start, end} | {c for c in cuts if end < c < start}, reverse=True)
        if any(high % low for high, low in pairwise(steps)):
            return None
        sizes = [high // low for high, low in pairwise(steps)]
        for high, low in pairwise(steps):
            own = {role for first, last, role in inside if first <= low and high <= last}
            if len(own) > 1:
                return None
            found.append(own.pop() if own else _REST)
        parts.append(tuple(sizes))
    return Arrangement(shape, tuple(parts), tuple(found))
