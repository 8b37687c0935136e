"""A folder of explanations while a run writes into it, as its first process sees it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_callbacks.data_sets.index import (
    FILE as INDEX,
)
from lightning_callbacks.data_sets.index import (
    Contents,
    Index,
    check_contents,
    read_contents,
    shards_of,
    write_index,
)
from lightning_callbacks.data_sets.lock import FolderLock
from lightning_callbacks.data_sets.manifest import (
    CHECKSUM,
    FILE,
    differences,
    read_manifest,
    write_manifest,
)
from lightning_callbacks.shared.atomic import remove_unfinished
from lightning_callbacks.shared.flavors import MisconfigurationException

_SHOWN = 10


class WritersFolder:
    """The verified content of a folder, locked for other writers until it is released.

    Args:
        folder: The folder, which is created if it doesn't exist.

    Raises:
        MisconfigurationException: If another run writes into it, or it has lost its manifest.
        DamagedDataError: If the manifest is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = FolderLock(folder)
        try:
            self.folder = folder
            remove_unfinished(folder)
            remove_unfinished(shards_of(folder))
            self._there = read_manifest(folder)
            if self._there is None:
                _check_empty(folder)
            found = None if self._there is None else check_contents(folder, self._there[CHECKSUM])
            self.contents = found or Contents(Index.empty(), {})
        except BaseException:
            self._lock.release()
            raise

    def begin(self, manifest: Mapping[str, Any]) -> str:
        """Compares a manifest with that of the folder, or writes it if the folder has none.

        Damaged shards are renamed, so that their samples are explained again.

        Args:
            manifest: The manifest of the present run.

        Returns:
            The checksum of the manifest in the folder.

        Raises:
            MisconfigurationException: If the folder belongs to other explanations.
        """
        if self._there is None:
            return write_manifest(self.folder, manifest)
        if found := differences(self._there, manifest):
            raise MisconfigurationException(
                f"{self.folder} holds explanations of another kind, so this run can't add to them. "
                "What differs:\n  " + "\n  ".join(found) + "\nTake another folder, or delete this "
                "one."
            )
        for path, why in self.contents.broken.items():
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            warnings.warn(
                f"{why} It is {aside.name} from now on, and its samples are explained again.",
                stacklevel=2,
            )
        checksum: str = self._there[CHECKSUM]
        return checksum

    def finish(self, manifest: str) -> int:
        """Writes the index, and warns of samples with values that are NaN or infinite.

        Args:
            manifest: The checksum of the manifest in the folder.

        Returns:
            The number of samples in the folder.
        """
        index, _ = read_contents(self.folder, manifest)
        write_index(self.folder, index)
        bad = index.sample_ids[index.columns["non_finite"] > 0].tolist()
        if bad:
            shown = ", ".join(map(str, bad[:_SHOWN])) + (", ..." if len(bad) > _SHOWN else "")
            warnings.warn(
                f"The maps or scores of {len(bad)} of {len(index)} samples have values that are "
                f"NaN or infinite: {shown}. The column `non_finite` of {INDEX} counts them. Look "
                "for an overflow (half precision?) or a division by zero in the model or in the "
                "attribution method.",
                stacklevel=2,
            )
        return len(index)

    def release(self) -> None:
        """Releases the lock, so that other runs can write into the folder."""
        self._lock.release()


def _check_empty(folder: Path) -> None:
    shard = next(shards_of(folder).glob("*.safetensors"), None)
    if shard is not None or (folder / INDEX).exists():
        raise MisconfigurationException(
            f"{folder} holds {'shards' if shard else INDEX}, but no {FILE}, so what they explain "
            "isn't known. Put it back if it was lost, or take another folder."
        )
