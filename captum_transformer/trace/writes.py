"""What the trace knows about writes into tensors, and about the views that torch's hooks make."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.axis import View
from captum_transformer.trace.entries import entry_of
from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import part_in_brackets

# The autograd functions that torch uses for module hooks: identities, whatever the hook does.
_HOOKS = frozenset(
    {
        "torch.nn.modules._functions.BackwardHookFunction",
        "torch.distributed.fsdp._fully_shard._fsdp_state.RegisterPreBackwardFunction",
        "torch.distributed.fsdp._fully_shard._fsdp_param_group.RegisterPostBackwardFunction",
    }
)


@cache
def is_hook(node: Any) -> bool:
    """Whether a type of autograd node is the identity that torch uses for module hooks."""
    function = getattr(node, "_forward_cls", None)
    return (
        f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}" in _HOOKS
    )


def that_only_looks(hook: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """Wraps a tensor hook to raise if the hook replaces the gradient, which rules rely on."""

    def looking(gradient: Tensor) -> None:
        replaced = hook(gradient)
        if replaced is not None and replaced is not gradient:
            raise UnseenOperationError(
                "The model registers a hook on a tensor that replaces its gradient (for gradient "
                "reversal or clipping, say). The gradient would be that of another function. "
                "Remove the hook while the model is explained."
            )

    return looking


def _write_view(
    under: Tensor | None,
    over: Tensor | None,
    size: tuple[int, ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    steps: tuple[int, ...],
) -> Tensor:
    """Returns a tensor after a write into a part of it, with zeros for what no input reaches."""
    known = over if under is None else under
    if known is None:
        raise RuntimeError("a write that no input reaches is not recorded")
    # Not torch.as_strided_scatter: its derivative for the background is wrong.
    result = known.new_empty_strided(size, steps).zero_() if under is None else under.clone()
    result.as_strided(shape, stride, offset).copy_(known.new_zeros(()) if over is None else over)
    return result


# The arguments that hold what is written, and functions that write all of a tensor.
_WRITTEN = frozenset({"source", "value"})
_WRITE_ALL = frozenset({"copy", "fill"})
_NOTHING: tuple[frozenset[View], frozenset[Value]] = (frozenset(), frozenset())
_ENTRY = entry_of(Kind.MOVE, "input source size shape stride offset steps")
WRITE_VIEW = Function("write_view", Kind.MOVE, _write_view, _ENTRY)


def shown(value: Value, view: View) -> tuple[Value | None, bool]:
    """Returns what a view shows of a tensor that may have been written into in part.

    Returns:
        If the view shows exactly what one write wrote, that value and True. Otherwise the value
        that the tensor held before the writes outside of the view, and False. The value is None for
        constants.
    """
    found: Value | None = value
    shape = tuple(value.shape)
    while found is not None and (write := found.operation) is not None:
        part = _written_part(write)
        source = None if part is None else _written_from(write, "source")
        if part == view and (source is None or source.shape == view.shape):
            return source, True
        if part is None or not part.apart_from(view, shape):
            break
        found = _written_from(write, "input")
    return found, False


class Overwritten:
    """Finds writes that, together with earlier ones, overwrite all that a tensor held before."""

    def __init__(self) -> None:
        # The parts of each value that were written and don't overlap, and what was written there.
        self._known: dict[Value | None, tuple[frozenset[View], frozenset[Value]]] = {}

    def __call__(self, operation: Operation) -> frozenset[Value] | None:
        """Returns what was written, or None if something is left or the operation doesn't write."""
        part, output = _written_part(operation), operation.outputs[0]
        if part is None or output is None:
            return None
        parts, values = self._known.get(_written_from(operation, "input"), _NOTHING)
        others, shape = parts - {part}, tuple(output.shape)
        if not all(part.apart_from(other, shape) for other in others):
            parts, values = _NOTHING
        source = _written_from(operation, "source")
        parts, values = parts | {part}, values if source is None else values | {source}
        self._known[output] = parts, values
        return values if sum(one.numel() for one in parts) == output.shape.numel() else None


def not_overwritten(operation: Operation) -> list[tuple[Operand, Value]]:
    """Returns the traced operands without one that the operation overwrites as a whole."""
    traced = operation.traced()
    if operation.kind is not Kind.MOVE or operation.name not in _WRITE_ALL:
        return traced
    return [pair for pair in traced if pair[0] is not operation.argument("input")]


def _written_part(operation: Operation) -> View | None:
    """Returns the part of its output that a write fills, or None if unknown or not a write."""
    output, known = operation.outputs[0], operation.arguments
    if operation.kind is not Kind.MOVE or output is None or known.keys().isdisjoint(_WRITTEN):
        return None
    shape = tuple(output.shape)
    if operation.name in _WRITE_ALL:
        return View.of(torch.empty(shape, device="meta"))
    if "stride" in known and View(shape, output.stride).is_contiguous():
        return View(tuple(known["shape"]), tuple(known["stride"]), known.get("offset") or 0)
    if "brackets" not in known or any(o.role is Role.INDEX for o in operation.operands):
        return None
    return part_in_brackets(operation.operands[0], known["brackets"])


def _written_from(operation: Operation, name: str) -> Value | None:
    """Returns the value that a write reads from an argument, or None if that is a constant."""
    given = operation.argument(name)
    return given.value if isinstance(given, Operand) else None
