"""PNG files, for loggers that have no place for images."""

import re
from pathlib import Path
from typing import Any

from matplotlib.image import imsave

from captum_transformer.visualization.canvas import Image


def file_path(tag: str, global_step: int, suffix: str) -> Path:
    """The name of a file for an entry of a log.

    Args:
        tag: The entry's tag, whose slashes become folders.
        global_step: Its step.
        suffix: The end of the name.

    Returns:
        A relative path.

    Example:
        >>> file_path("attribution/sample_0", 200, ".png").as_posix()
        'attribution/sample_0/step_00000200.png'
    """
    # A tag may hold what a file name can't, or "..", which would lead out of the folder.
    parts = [re.sub(r"[^\w.\- ]|^\.+$", "_", part) for part in tag.split("/") if part]
    return Path(*parts, f"step_{global_step:08d}{suffix}")


class PNGWriter:
    """Writes images as files and texts as Markdown beside them.

    An image with the tag ``attribution/sample_0`` and the step 200 becomes
    ``attribution/sample_0/step_00000200.png``.

    Args:
        folder: Where the files go; it is made when the first one is written.

    Example:
        >>> PNGWriter("logs").folder.as_posix()
        'logs'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def add_image(
        self,
        tag: str,
        img_tensor: Image,
        global_step: int | None = None,
        *,
        dataformats: str = "HWC",
    ) -> Any:
        """Writes an image; one that is there already is replaced.

        Args:
            tag: The image's tag.
            img_tensor: A uint8 array ``(H, W, 3)``.
            global_step: Its step.
            dataformats: ``"HWC"``; the argument is there for the sake of the common face.
        """
        if dataformats != "HWC":
            raise ValueError(f"PNGWriter takes images as 'HWC', got {dataformats!r}.")
        imsave(self._file(tag, global_step, ".png"), img_tensor)

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any:
        """Writes a Markdown text; one that is there already is replaced.

        Args:
            tag: The text's tag.
            text_string: The text.
            global_step: Its step.
        """
        self._file(tag, global_step, ".md").write_text(text_string + "\n", encoding="utf-8")

    def _file(self, tag: str, global_step: int | None, suffix: str) -> Path:
        path = self.folder / file_path(tag, global_step or 0, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
