"""Which parts run again in the backward pass: blocks on request, or the model's own checkpoints.

For a checkpoint of `torch.utils.checkpoint`, torch would run the model's code again where no trace
sees it. The trace runs these parts again by itself, so it only has to know which they are.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import torch
from torch.utils import checkpoint as _torch

from captum_transformer.errors import InvalidInputError

# Whether to run blocks of the model again, or the number of attention calls in a block.
Checkpoint = bool | int
# The hooks that pack and unpack the tensors that autograd saves; None if there are none.
saving_hooks = torch._C._autograd._top_saved_tensors_default_hooks
# The code of the pack hooks of checkpoints.
_PACKS = frozenset(
    code
    for code in _torch._checkpoint_hook.__init__.__code__.co_consts
    if isinstance(code, types.CodeType)
)


def layers_of_block(checkpoint: Checkpoint) -> int | None:
    """Returns the number of attention calls in a block that is run again, or None for no blocks.

    Raises:
        InvalidInputError: if the value is not a bool or a non-negative number.
    """
    given: object = checkpoint
    if not isinstance(given, int) or given < 0:
        raise InvalidInputError(
            "`checkpoint` must be True, False, or how many attention layers make a block, got "
            f"{checkpoint!r}."
        )
    return int(checkpoint) or None


def declared_by(hooks: Any) -> Any:
    """Returns an object that identifies the checkpoint of autograd's hooks, or None without one.

    Args:
        hooks: the hooks that pack and unpack saved tensors; None if there are none.
    """
    if hooks is None or getattr(hooks[0], "__code__", None) not in _PACKS:
        return None
    return hooks[0]


class _Reentrant:
    """Runs reentrant checkpoints as non-reentrant ones in threads that explain."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads: list[int] = []
        self._before: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._before = _torch.CheckpointFunction
                _torch.CheckpointFunction = self  # type: ignore[assignment, misc]
            self._threads.append(get_ident())

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads.remove(get_ident())
            if not self._threads:
                _torch.CheckpointFunction = self._before  # type: ignore[misc]

    def apply(self, function: Any, preserve: bool, *args: Any) -> Any:
        """Replaces the method of the autograd function."""
        if get_ident() not in self._threads:
            return self._before.apply(function, preserve, *args)
        return _torch.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=bool(preserve)
        )


_REENTRANT = _Reentrant()


@contextmanager
def without_reentrant() -> Iterator[None]:
    """Runs `checkpoint(..., use_reentrant=True)` as with `use_reentrant=False` in its context.

    A reentrant checkpoint hides its forward pass, allows no gradient at chosen points, and adds to
    the gradients of parameters.

    Example:
        >>> import torch
        >>> x = torch.ones(1, requires_grad=True)
        >>> with without_reentrant():
        ...     y = torch.utils.checkpoint.checkpoint(torch.exp, x, use_reentrant=True)
        >>> torch.autograd.grad(y, x)[0]
        tensor([2.7183])
    """
    with _REENTRANT:
        yield
