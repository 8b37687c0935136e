"""LRP-gamma in linear layers, as a gradient (Ali et al., ICML 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_transformer.rules.gradient.hold import refused
from captum_transformer.trace.features import is_linear_layer
from captum_transformer.trace.mode import ForwardRule
from captum_transformer.trace.numeric import quotient
from captum_transformer.trace.operation import Operation


@dataclass(frozen=True)
class Gamma:
    """The LRP-gamma rule for one linear layer.

    Attributes:
        gamma: how much the positive weights are favoured.
        keeps_output: whether the layer still returns what it did without the rule.
    """

    gamma: float
    keeps_output: bool


def favour_positive(gammas: Mapping[int, Gamma]) -> ForwardRule:
    """Runs linear layers whose positive weights count for more.

    Args:
        gammas: by the place of the layer's operation on the tape.
    """

    def rule(operation: Operation) -> Any:
        gamma = gammas.get(operation.index)
        if gamma is None:
            return NotImplemented
        if not is_linear_layer(operation):
            return refused(
                operation, "LRP-gamma is for weights that the inputs don't reach", "Use gamma=0; "
            )
        constants = [o for o in operation.operands if o.value is None and o.dtype.is_floating_point]
        plain = {operand: operand.tensor.detach() for operand in constants}
        favoured = {o: w + gamma.gamma * w.clamp(min=0) for o, w in plain.items()}
        output: Tensor = operation.run(lambda o: favoured.get(o, o.tensor))
        if not gamma.keeps_output:
            return output
        unchanged: Tensor = operation.run(lambda o: o.tensor.detach())
        held = output.detach()
        return unchanged + (output - held) * quotient(unchanged, held)

    return rule
