"""The manifest, which identifies the explanations of a run.

A resumed run must have the same method with the same arguments, the same model and the same
versions. Otherwise the data set would hold explanations of two kinds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from captum_transformer.errors import DamagedDataError
from lightning_callbacks.data_sets.checksums import checksum_of
from lightning_callbacks.shared.atomic import written

FILE = "manifest.json"
"""The manifest's name in the folder."""

CHECKSUM = "checksum"
"""The manifest's entry for its own checksum, which shards refer to."""

_NOTHING = "nothing"
_SHOWN = 20


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a folder.

    Args:
        folder: The folder with the explanations.

    Returns:
        The manifest, or None if there is none.

    Raises:
        DamagedDataError: If it is invalid, or has changed since it was written.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        known = manifest.get(CHECKSUM)
    except (ValueError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    if known != _checksum(manifest):
        raise _damaged(path, "its content has changed")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Writes the manifest of a folder, atomically.

    Args:
        folder: The folder, which is created if it doesn't exist.
        manifest: Values that can be converted to JSON.

    Returns:
        Its checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checksum = _checksum(manifest)
    with written(folder / FILE) as unfinished:
        content = {**manifest, CHECKSUM: checksum}
        unfinished.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return checksum


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns the differences of two manifests.

    Args:
        there: The manifest of the folder.
        here: The manifest of the present run.

    Returns:
        A line for each entry that differs; of very many, only the first ones.

    Example:
        >>> differences({"method": {"gamma": 0.0}}, {"method": {"gamma": 0.1}})
        ['method.gamma: 0.0 there, 0.1 here']
    """
    # As read back from JSON, which turns tuples into lists.
    first, second = (json.loads(json.dumps(part)) for part in (there, here))
    lines = list(_different(first, second))
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != CHECKSUM}
    # Converted to JSON first, which turns all keys into strings.
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return f"{checksum_of([text]) % 2**64:016x}"


def _damaged(path: Path, why: str) -> DamagedDataError:
    return DamagedDataError(
        f"{path} is damaged ({why}), so what the shards beside it explain isn't known. Put back a "
        "copy of it, or explain the data set again in another folder."
    )


def _different(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [key for key in dict.fromkeys((*there, *here)) if key != CHECKSUM]
        if there.get("class") != here.get("class"):
            keys = ["class"]  # what else an object of another class holds has no counterpart
        for key in keys:
            at = f"{path}.{key}" if path else key
            yield from _different(there.get(key, _NOTHING), here.get(key, _NOTHING), at)
    elif there != here:
        yield f"{path}: {_said(there)} there, {_said(here)} here"


def _said(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (Mapping, list)) else str(value)
