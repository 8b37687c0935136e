"""Threads that run a model while another one explains it."""

import threading
from collections.abc import Iterable

from torch import nn

from captum_transformer.errors import ExplanationError

_here = threading.local()


class OtherThreads:
    """Refuses forward passes of other threads that would run in evaluation mode against their will.

    A model has one mode for all threads, and in evaluation mode it trains without dropout, and
    without batch statistics. Threads that explain it, too, want it so, and so do those that run it
    in evaluation mode. The threads of autograd, in which checkpoints run again, are no others.

    Args:
        training: the modules that are in training mode before they are explained.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> with OtherThreads([layer]) as others:
        ...     others.refuse(layer)  # this thread is the one that explains
    """

    def __init__(self, training: Iterable[nn.Module]) -> None:
        self._training = frozenset(map(id, training))

    def __enter__(self) -> "OtherThreads":
        _here.depth = getattr(_here, "depth", 0) + 1
        return self

    def __exit__(self, *_: object) -> None:
        _here.depth -= 1

    def refuse(self, module: nn.Module) -> None:
        """A module is called in this thread.

        Raises:
            ExplanationError: if this thread trains it.
        """
        if id(module) not in self._training or module.training:
            return
        explains = bool(getattr(_here, "depth", 0))
        if not explains and _is_of_python():
            raise ExplanationError(
                f"{type(module).__name__} is being explained in another thread, and is in "
                "evaluation mode for that time, so it can't run in training mode here. Explain it "
                "in the thread that trains it, or explain a copy, `copy.deepcopy(model)`, or use "
                "a lock for training and explaining."
            )


def _is_of_python() -> bool:
    """Whether Python's `threading` has started this thread, or it is the first one."""
    dummy = threading._DummyThread  # noqa: SLF001
    return not isinstance(threading.current_thread(), dummy)
