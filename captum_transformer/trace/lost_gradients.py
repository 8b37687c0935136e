"""Finds step functions in which a gradient would be lost, while the model runs.

An entry-wise function may be a step function although each of its operations has a slope, such as
``x - x % 1``, and may have a slope although one of its operations is a step, as ``x - floor(x)``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.derivatives import derivatives
from captum_transformer.trace.gates import OfEntry, may_be_step, works_by_entry
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.step_functions import rounds
from captum_transformer.trace.steps import as_it_is
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

_STRAIGHT_THROUGH = (
    "To treat it as its input (straight-through), use "
    "`captum_transformer.extend.straight_through({key})`, or write `x + (f(x) - x).detach()` in "
    "the model. "
)
_ADVICE = (
    "AttnLRP and LibraGrad have a rule for functions of each entry, AttentionRollout takes no "
    "gradient. To exclude the dependence, call `detach()` on its input."
)


class StepFunction(NamedTuple):
    """A step function that has run without a rule, or an entry-wise function that may be one.

    Attributes:
        operation: the operation that is the step function, or that completes the entry-wise
            function.
        edge: the position of its output in the autograd graph.
        whole: the entry-wise function that the operation completes, or None.
        flat: whether this entry-wise function is a step function, or None without one.
    """

    operation: Operation
    edge: GradientEdge
    whole: OfEntry | None = None
    flat: Tensor | None = None


class Completed(NamedTuple):
    """An entry-wise function that an operation is about to complete.

    Attributes:
        whole: the function.
        signal: the argument of the function.
        edge: the position of the argument in the autograd graph.
        parts: the operands of the operation, each with its position in the autograd graph.
    """

    whole: OfEntry
    signal: Tensor
    edge: GradientEdge
    parts: list[tuple[Tensor, GradientEdge]]

    def step(self, operation: Operation, result: Tensor) -> StepFunction:
        """Returns the function, with whether its derivative is zero but its result not constant."""
        edge, result = get_gradient_edge(result), result.detach()
        weights = torch.ones_like(result)
        if self.whole.moves:  # an entry may be in several places, with slopes that cancel
            numbers = torch.arange(result.numel(), device=result.device)
            weights += (numbers / max(result.numel(), 1)).to(result.dtype).view_as(result)
        with torch.enable_grad():
            slope = _slope(edge, self.edge, weights)
            leaves = [tensor.requires_grad_() for tensor, _ in self.parts]
            with saved_tensors_hooks(as_it_is, as_it_is):  # checkpoints count saved tensors
                local = torch.autograd.grad(operation.replay(leaves)[:1], leaves, weights)
            parts = [
                _slope(part, self.edge, given)
                for (_, part), given in zip(self.parts, local, strict=True)
            ]
        # Slopes that cancel leave rounding errors.
        largest = torch.stack(parts).abs().amax(0)
        rounding = 64 * torch.finfo(result.dtype).eps * largest
        flat = (slope.abs() <= rounding) | ~slope.isfinite() | ~largest.isfinite()
        known = result.nan_to_num(0.0, 0.0, 0.0)
        other = self._again(operation) if self.whole.moves else known.flatten()[:1]
        differs = (known != other.nan_to_num(0.0, 0.0, 0.0)).any()
        return StepFunction(operation, edge, self.whole, flat.all() & differs)

    def _again(self, operation: Operation) -> Tensor:
        """Returns the result for the same entries in reverse order."""
        known = {self.whole.source: self.signal.flatten().flip(0).view_as(self.signal)}
        with torch.no_grad():
            for one in reversed(self.whole.operations):
                results = one.replay([known[value] for _, value in one.traced()])
                made = zip(one.outputs, results, strict=True)
                known |= {value: result for value, result in made if value is not None}
            result: Tensor
            (result,) = operation.replay([known[value] for _, value in operation.traced()])
        return result


def _slope(of: GradientEdge, point: GradientEdge, weights: Tensor) -> Tensor:
    """Returns the derivative of a weighted sum of a tensor's entries by another tensor."""
    if of == point:
        return weights
    (slope,) = torch.autograd.grad(of, point, weights, retain_graph=True, materialize_grads=True)
    return slope


def completed(operation: Operation) -> Completed | None:
    """Returns what may become a step function when the given operation runs, or None."""
    whole = may_be_step(operation)
    signal = None if whole is None else whole.source.holder()
    if whole is None or signal is None or not signal.requires_grad:
        return None
    if signal._version != whole.source.version or not signal.numel():
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(signal):
        return None
    given = [operand.given for operand, _ in operation.traced()]
    parts = [(tensor.detach().clone(), get_gradient_edge(tensor)) for tensor in given]
    return Completed(whole, signal.detach().clone(), get_gradient_edge(signal), parts)


def refuse_steps(
    steps: Sequence[StepFunction], total: Tensor, points: Iterable[GradientEdge], tape: Tape
) -> None:
    """Raises an error if a gradient would be lost in a step function.

    Args:
        steps: the step functions of the forward pass, and functions that may be step functions.
        total: the number that is differentiated.
        points: the points at which the gradient is requested.
        tape: the tape of the forward pass.
    """
    if not steps:
        return
    wholes = {step.operation: step.whole for step in steps if step.whole is not None}
    flat = "whether the derivative of a function is zero"
    steps = [step for step in steps if step.flat is None or truth(step.flat, flat)]
    slopes = derivatives(total, [step.edge for step in steps], tape.operations) if steps else ()
    asked = {point.node for point in points}
    for step, slope in zip(steps, slopes, strict=True):
        lost = "whether a gradient is lost in a step function"
        if slope is None or not truth((slope != 0).any(), lost):
            continue
        if not _leads_to(step.edge.node, asked) or _is_part(step.operation, tape, wholes):
            continue
        raise UnsupportedOperationError(_why(step))


def _why(step: StepFunction) -> str:
    operation, whole = step.operation, step.whole
    key = operation.argument("between") or f"torch.{operation.name}"
    instead = _STRAIGHT_THROUGH.format(key=key) if rounds(operation.function.entry) else ""
    what = f"{operation.described},"
    if whole is not None:
        names = [f"`{one.name}`" for one in reversed(whole.operations)]
        what = f"What {operation.described}, makes of one signal by {', '.join(names)}"
    return (
        f"{what} is a step function: its derivative is zero, so everything that the score depends "
        f"on through it would get zero relevance. {instead}{_ADVICE}"
    )


def _leads_to(node: Any, asked: Iterable[Any]) -> bool:
    """Whether a backward pass from a node of the autograd graph reaches one of the given nodes."""
    asked = set(asked)
    stack, seen = [parent for parent, _ in node.next_functions], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node in asked:
            return True
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return False


def _is_part(step: Operation, tape: Tape, wholes: Mapping[Operation, OfEntry]) -> bool:
    """Whether a step is a part of an entry-wise function with a slope, as in ``x - floor(x)``.

    If that function has no slope either, it is one of the steps itself.
    """
    stack, seen = [value for value in step.outputs if value is not None], set[Value]()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        for operation in tape.operations[step.index + 1 :]:
            if not any(given is value for _, given in operation.traced()):
                continue
            whole = wholes.get(operation)
            if whole is not None and step in whole.operations:
                continue
            if not works_by_entry(operation) or (whole is None and len(operation.traced()) > 1):
                return False
            stack += [v for v in operation.outputs if v is not None]
    return True
