"""Threads that run a model while another one explains it."""

import threading
from collections.abc import Iterable

from torch import nn

from captum_transformer.errors import ExplanationError

_here = threading.local()


class OtherThreads:
    """Refuses forward passes of other threads that would wrongly run in evaluation mode.

    A model has one mode for all threads, and in evaluation mode it trains without dropout and
    without batch statistics. Threads that also explain the model, or that run it in evaluation
    mode, are allowed. The threads of autograd, in which checkpoints run again, don't count as
    other threads.

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
        """Refuses a call of a module in this thread if the thread trains the module.

        Raises:
            ExplanationError: if this thread trains the module.
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
    """Returns whether Python's `threading` has started this thread, or it is the main thread."""
    dummy = threading._DummyThread  # noqa: SLF001
    return not isinstance(threading.current_thread(), dummy)
