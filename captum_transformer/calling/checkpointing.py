"""What is to run again in the backward pass: blocks as asked for, or what a model says itself.

For what a model says by `torch.utils.checkpoint`, torch would run the model's code again where no
trace sees it. The trace runs these parts again by itself, so it only has to know which they are.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import torch
from torch.utils import checkpoint as _torch

from captum_transformer.errors import InvalidInputError

# Whether to run blocks of the model again, or how many attention calls make a block.
Checkpoint = bool | int
# The functions by which autograd hands over what it saves and gets it back; None if it keeps it.
saving_hooks = torch._C._autograd._top_saved_tensors_default_hooks
# The functions by which a checkpoint takes what autograd saves.
_PACKS = frozenset(
    code
    for code in _torch._checkpoint_hook.__init__.__code__.co_consts
    if isinstance(code, types.CodeType)
)


def layers_of_block(checkpoint: Checkpoint) -> int | None:
    """How many attention calls make a block that is run again; None if none is.

    Raises:
        InvalidInputError: if there is no such block.
    """
    given: object = checkpoint
    if not isinstance(given, int) or given < 0:
        raise InvalidInputError(
            "`checkpoint` must be True, False, or how many attention layers make a block, got "
            f"{checkpoint!r}."
        )
    return int(checkpoint) or None


def declared_by(hooks: Any) -> Any:
    """What stands for the checkpoint that autograd's hooks are of; None if they are of none.

    Args:
        hooks: the function that takes what autograd saves, and its inverse; None if there is none.
    """
    if hooks is None or getattr(hooks[0], "__code__", None) not in _PACKS:
        return None
    return hooks[0]


class _Reentrant:
    """Reentrant checkpoints run as the others, which autograd sees, in threads that explain."""

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
        """In the place of the autograd function's."""
        if get_ident() not in self._threads:
            return self._before.apply(function, preserve, *args)
        return _torch.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=bool(preserve)
        )


_REENTRANT = _Reentrant()


@contextmanager
def without_reentrant() -> Iterator[None]:
    """Meanwhile `checkpoint(..., use_reentrant=True)` runs as with `use_reentrant=False`.

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
