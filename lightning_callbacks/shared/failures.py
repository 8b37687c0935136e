"""Handles failures of explanations while a model trains."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from captum_transformer.calling.memory import give_back_cached, is_out_of_memory
from captum_transformer.errors import ExplanationError
from lightning_callbacks.shared.flavors import MisconfigurationException


class Failures:
    """Keeps training running if an explanation fails, and warns once.

    Args:
        on_error: ``"warn"`` once for each kind of failure, or ``"raise"``.
        owner: The name of the callback, for the messages.

    Attributes:
        given_up: Whether nothing more may be explained.

    Raises:
        MisconfigurationException: If `on_error` is anything else.

    Example:
        >>> with Failures("raise").tolerated("divide"):
        ...     1 / 0
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """

    def __init__(
        self, on_error: Literal["warn", "raise"], owner: str = "AttributionMonitor"
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise MisconfigurationException(
                f"on_error must be 'warn' or 'raise', got {on_error!r}."
            )
        self.on_error = on_error
        self.owner = owner
        self.given_up = False
        self._warned: set[str] = set()

    @contextmanager
    def tolerated(self, what: str) -> Iterator[None]:
        """Turns an exception of the body into a warning, unless it is to be raised.

        Memory held by the failed calls is released, so that it is available to the training.

        Args:
            what: What the body does, for the message; there is one warning for each value.
        """
        out_of_memory = False
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            self.warn_once(
                what,
                f"{self.owner} couldn't {what}: {type(error).__name__}: {error}"
                f"{_hint(error)} Training continues, and further failures of this kind are not "
                "reported. Pass on_error='raise' to stop instead.",
            )
            out_of_memory = is_out_of_memory(error)
            # Frames hold activations, and may be kept alive by a reference cycle with the error.
            traceback.clear_frames(error.__traceback__)
        if out_of_memory:
            # Cached memory of the explanation is in blocks of sizes that the training can't use.
            give_back_cached()

    def give_up(self, changed: Sequence[str]) -> None:
        """Stops all explanations, because they change the model.

        Args:
            changed: The names of the parts that have changed.

        Raises:
            ExplanationError: If errors are to be raised.
        """
        self.given_up = True
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        message = (
            f"Explaining the model has changed {', '.join(changed[:5])}{more}, which can't be put "
            f"back, so {self.owner} explains nothing more. From here on, training may differ from "
            "a training without it. In the forward pass, only write into buffers, attributes or "
            "generators of the module, which are restored, or don't write in evaluation mode."
        )
        if self.on_error == "raise":
            raise ExplanationError(message)
        warnings.warn(message, stacklevel=2)

    def warn_once(self, key: str, message: str) -> None:
        """Warns once for each key.

        Args:
            key: What the warning is about.
            message: The text.
        """
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=2)


def _hint(error: Exception) -> str:
    if "nference tensor" in str(error):
        return (
            " The module holds tensors that were made in inference mode: use "
            "Trainer(inference_mode=False)."
        )
    if "does not require grad" in str(error):
        return (
            " What is explained has no gradient: its forward pass may run under torch.no_grad(), "
            "detach, or round."
        )
    if is_out_of_memory(error):
        return " Explain fewer samples (num_samples=), or fewer at a time (internal_batch_size=)."
    return ""
