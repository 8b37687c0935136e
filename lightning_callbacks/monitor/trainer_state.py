"""The state of a callback within the state of the ``Trainer`` of Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from transformers import TrainerCallback, TrainerState

from lightning_callbacks.shared.flavors import MisconfigurationException


class _Stored(dict[str, Any]):
    """A state with the callback that stored it, which is None for states of checkpoints."""

    callback: TrainerCallback | None = None


def load(state: TrainerState, key: str) -> dict[str, Any] | None:
    """Returns what a callback has stored, also before a checkpoint, or None.

    Args:
        state: The state of the training.
        key: The key of the callback's state.

    Returns:
        The attributes that were stored.
    """
    found = _all(state).get(key)
    return None if found is None else found["attributes"]


def store(
    state: TrainerState, key: str, attributes: Mapping[str, Any], callback: TrainerCallback
) -> None:
    """Stores a callback's state in the form of Transformers' ``ExportableState``.

    Args:
        state: The state of the training, which the trainer saves in its checkpoints.
        key: The key of the callback's state.
        attributes: The callback's state.
        callback: The callback.

    Raises:
        MisconfigurationException: If another callback has stored its state under this key.
    """
    stored = _all(state)
    found = stored.get(key)
    if isinstance(found, _Stored) and found.callback is not callback:
        kind, _, prefix = key.partition("/")
        raise MisconfigurationException(
            f"Two {kind} in one trainer have the prefix {prefix!r}, so they would log under the "
            "same tags. Give each its own prefix."
        )
    stored[key] = own = _Stored(args={}, attributes=dict(attributes))
    own.callback = callback


def _all(state: TrainerState) -> dict[str, Any]:
    stored: Any = state.stateful_callbacks
    return cast("dict[str, Any]", stored)
