"""Sums of several scores, and where what is carried back from them starts."""

from typing import NamedTuple

from torch import Tensor

from captum_transformer.calling.target import Combination
from captum_transformer.trace.value import Value


class Combined(NamedTuple):
    """The scores that a sum was made of.

    Attributes:
        value: of all of them, ``(samples, scores)``.
        combination: what was asked for.
    """

    value: Value
    combination: Combination

    @property
    def sides(self) -> list[Tensor]:
        """The sizes of positive weights and, where there may be such, those of negative ones."""
        weights = self.combination.weights
        signs = (1, -1) if self.combination.signed else (1,)
        return [(weights * sign).clamp(min=0) for sign in signs]
