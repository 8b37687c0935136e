"""The derivative of a tape, to compare with autograd."""

import torch

from captum_transformer.calling import Arguments
from captum_transformer.rules.propagate import propagate, transposed
from captum_transformer.trace import traced_forward
from captum_transformer.trace.kinds import Kind


def derivative_of_the_tape(function, x):
    """The gradient at the input, carried backward along the tape operation by operation."""
    with traced_forward(function, Arguments(x[None]), keep=frozenset(Kind)) as forward:
        selected, value = forward.select(0)
        by_autograd = forward.gradients(selected, [forward.edges[0]])[0]

        def rule(operation, incoming):
            points = [
                value.blank(value.dtype) if operand.data is None else operand.tensor
                for operand, value in operation.traced()
            ]
            return transposed(operation, points, incoming)

        ones = {value: torch.ones_like(selected)}
        (found,) = propagate(forward.tape, ones, rule, forward.values).values()
    return found[0], by_autograd[0]
