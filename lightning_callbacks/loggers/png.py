"""PNG files, for loggers without support for images."""

import io
import re
import zlib
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from captum_transformer.visualization.canvas import Image
from lightning_callbacks.shared.atomic import written

# Names that no file can have on Windows, whatever its ending.
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}


def file_path(tag: str, global_step: int, suffix: str) -> Path:
    """Returns the path of the file for an entry of a log.

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
    return folder_of(tag) / f"step_{global_step:08d}{suffix}"


def folder_of(tag: str) -> Path:
    """Returns the folder for a tag, whose slashes become folders.

    Args:
        tag: Any text.

    Returns:
        A relative path, another one for each tag. Where a part of the tag can't be a name on every
        system, other characters stand for some of its own, and a checksum tells it apart.

    Example:
        >>> folder_of("sample/gamma > 0").as_posix()
        'sample/gamma _ 0~05894410'
    """
    return Path(*(_file_name(part) for part in tag.split("/") if part))


def _file_name(part: str) -> str:
    # Windows drops dots and spaces at the end, and ".." would leave the folder.
    name = re.sub(r"[^\w.\- ]|[. ]+$", "_", part)
    if name.partition(".")[0].rstrip().lower() in _DEVICES:
        name = f"_{name}"
    if name == part:
        return part
    return f"{name}~{zlib.crc32(part.encode('utf-8', 'surrogatepass')):08x}"


def encoded(image: Image) -> bytes:
    """Returns an image as the content of a PNG file.

    Args:
        image: A uint8 array ``(H, W, 3)``.

    Returns:
        The content. It is about 3 % larger than with Pillow's default, and made in half the time.

    Example:
        >>> import numpy as np
        >>> encoded(np.zeros((2, 2, 3), np.uint8))[1:4]
        b'PNG'
    """
    content = io.BytesIO()
    PILImage.fromarray(image).save(content, format="PNG", compress_level=4)
    return content.getvalue()


class PNGWriter:
    """Writes images as PNG files, and texts as Markdown files next to them.

    An image with the tag ``attribution/sample_0`` and the step 200 becomes
    ``attribution/sample_0/step_00000200.png``. Files in a local folder are written atomically.

    Args:
        folder: The folder for the files, which is created when the first one is written. One with a
            protocol, such as ``s3://bucket/logs``, is opened with fsspec, as in Lightning's own.

    Example:
        >>> PNGWriter("logs").folder
        'logs'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)

    def add_image(
        self,
        tag: str,
        img_tensor: Image,
        global_step: int | None = None,
        *,
        dataformats: str = "HWC",
    ) -> Any:
        """Writes an image; an existing file is replaced.

        Args:
            tag: The image's tag.
            img_tensor: A uint8 array ``(H, W, 3)``.
            global_step: Its step.
            dataformats: ``"HWC"``; the argument is part of the common interface of writers.
        """
        if dataformats != "HWC":
            raise ValueError(f"PNGWriter takes images as 'HWC', got {dataformats!r}.")
        self._write(file_path(tag, global_step or 0, ".png"), encoded(img_tensor))

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any:
        """Writes a Markdown text; an existing file is replaced.

        Args:
            tag: The text's tag.
            text_string: The text.
            global_step: Its step.
        """
        path = file_path(tag, global_step or 0, ".md")
        self._write(path, f"{text_string}\n".encode())

    def _write(self, path: Path, content: bytes) -> None:
        if "://" in self.folder:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped, unused-ignore]

            files, root = url_to_fs(self.folder)
            files.makedirs(f"{root}/{path.parent.as_posix()}", exist_ok=True)
            files.pipe_file(f"{root}/{path.as_posix()}", content)
            return
        place = Path(self.folder, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with written(place, durable=False) as unfinished:
            unfinished.write_bytes(content)
