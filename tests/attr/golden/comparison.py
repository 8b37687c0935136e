"""An expected tensor, and the computation of this library that is compared with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.attr.golden.cases import Case, attentions_of, load_case

EXACT = 1e-9
# The authors' `Clone` and `Add` divide by `x + 1e-9`.
LRP = 5e-6


@dataclass(frozen=True)
class Golden:
    """One expected tensor and what computes it.

    Attributes:
        case: the golden case.
        key: the name of the expected tensor in it.
        compute: from the case to what this library says.
        tolerance: relative to the largest expected value.
        absolute: allowed in any case, where the expected values themselves are rounding errors.
        without_cls: leave out the first token, which the authors overwrite.
        at_targets: of the expected logits, only the targets' are compared.
        part: what of the expected tensor is compared.
    """

    case: str
    key: str
    compute: Callable[[Case], Tensor]
    tolerance: float = EXACT
    absolute: float = 0.0
    without_cls: bool = False
    at_targets: bool = False
    part: Callable[[Tensor], Tensor] = lambda expected: expected

    @property
    def name(self) -> str:
        return f"{self.case}-{self.key}"

    @property
    def attentions(self) -> tuple[str, ...]:
        """The attention implementations that it is compared with."""
        return attentions_of(self.case)

    def values(self, attention: str | None = None) -> tuple[Tensor, Tensor]:
        """What is computed and what is expected."""
        case = load_case(self.case, attention)
        actual = self.compute(case)
        expected = self.part(case.expected[self.key].nan_to_num(nan=0.0))
        if self.at_targets:
            expected = expected.gather(1, torch.stack(case.targets, 1))
        if self.without_cls:
            actual, expected = actual[..., 1:], expected[..., 1:]
        return actual, expected


def deviation(golden: Golden, attention: str | None = None) -> float:
    """The largest difference as a share of the largest expected value."""
    actual, expected = golden.values(attention)
    return float((actual - expected).abs().max() / expected.abs().max())
