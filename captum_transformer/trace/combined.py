"""Weighted sums of several scores, and the weights that their backward passes start with."""

from typing import NamedTuple

from torch import Tensor

from captum_transformer.calling.target import Combination
from captum_transformer.trace.value import Value


class Combined(NamedTuple):
    """The scores that a weighted sum was made of.

    Attributes:
        value: the value of all scores, ``(samples, scores)``.
        combination: the requested combination.
    """

    value: Value
    combination: Combination

    @property
    def sides(self) -> list[Tensor]:
        """The positive weights and, if weights may be negative, the sizes of the negative ones."""
        weights = self.combination.weights
        signs = (1, -1) if self.combination.signed else (1,)
        return [(weights * sign).clamp(min=0) for sign in signs]
