"""What the trace knows of writes into views, and of the views that hooks of torch's own make."""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import Kind

# The autograd functions by which torch hangs hooks on modules: identities, whatever the hook does.
_HOOKS = frozenset(
    {
        "torch.nn.modules._functions.BackwardHookFunction",
        "torch.distributed.fsdp._fully_shard._fsdp_state.RegisterPreBackwardFunction",
        "torch.distributed.fsdp._fully_shard._fsdp_param_group.RegisterPostBackwardFunction",
    }
)


@cache
def is_hook(node: Any) -> bool:
    """Whether a kind of autograd node is the identity by which torch hangs hooks on modules."""
    function = getattr(node, "_forward_cls", None)
    return (
        f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}" in _HOOKS
    )


def that_only_looks(hook: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """A tensor's hook that raises if it replaces the gradient, which rules read as it is."""

    def looking(gradient: Tensor) -> None:
        replaced = hook(gradient)
        if replaced is not None and replaced is not gradient:
            raise UnseenOperationError(
                "The model registers a hook on a tensor that replaces its gradient (for gradient "
                "reversal or clipping, say). Explanations would be of another function than the "
                "one that the model computes. Leave the hook out while it is explained."
            )

    return looking


def _write_view(
    under: Tensor | None,
    over: Tensor | None,
    size: tuple[int, ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
) -> Tensor:
    """A tensor that was written into in part; zeros for what no input reaches."""
    known = over if under is None else under
    if known is None:
        raise RuntimeError("a write that no input reaches is not recorded")
    # Not torch.as_strided_scatter: its derivative for the background is wrong.
    result = known.new_zeros(size) if under is None else under.clone()
    result.as_strided(shape, stride, offset).copy_(known.new_zeros(()) if over is None else over)
    return result


WRITE_VIEW = Function("write_view", Kind.MOVE, _write_view)
