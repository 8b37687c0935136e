"""Reads images and texts, which may be too large, damaged or of another type."""

import stat
import warnings
from pathlib import Path
from typing import cast

from PIL import Image, ImageOps

from captum_transformer.cli.errors import UserError
from captum_transformer.errors import InvalidInputError
from captum_transformer.explainers.pictures import in_rgb

MAX_IMAGE_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
MAX_RATIO = 20
MAX_TEXT_BYTES = 1_000_000

# Pillow supports many more, including some that run other programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def read_image(path: Path) -> Image.Image:
    """Reads an image as RGB, upright, with white behind transparent parts.

    Args:
        path: A file.

    Returns:
        The image; of an animation, its first frame.

    Raises:
        UserError: If it can't be read, or exceeds the size limits.
    """
    check_file(path, MAX_IMAGE_BYTES)
    try:
        # Pillow only warns of images up to twice its limit.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                _check_size(image.size)
                image.load()
                return cast(Image.Image, in_rgb(ImageOps.exif_transpose(image)))
    except UserError:
        raise
    except InvalidInputError as error:
        raise UserError(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"the image has too many pixels (limit: {MAX_PIXELS:,})") from error
    # A damaged file may raise almost any error: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise UserError(f"it can't be read as an image ({' '.join(str(error).split())})") from error


def read_text(path: Path) -> str:
    """Reads a text in UTF-8.

    Args:
        path: A file.

    Returns:
        The text, without space at its ends.

    Raises:
        UserError: If it can't be read or is too long.
    """
    check_file(path, MAX_TEXT_BYTES)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("it is not text in UTF-8") from error


def is_folder(path: Path) -> bool:
    """Returns whether a folder exists; invalid file names count as missing.

    Args:
        path: The path.

    Returns:
        Whether it is a folder.
    """
    try:
        return path.is_dir()
    # The name is too long, which raises an error in some versions of Python.
    except OSError:
        return False


def check_file(path: Path, most: int) -> None:
    """Raises an error unless a path is an existing file within a size limit.

    Args:
        path: The path.
        most: The maximum number of bytes.

    Raises:
        UserError: If it is missing, a folder, a device or too large.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UserError("there is no such file") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError("it is not a file")
    if status.st_size > most:
        raise UserError(f"it has {status.st_size:,} bytes, the limit is {most:,}")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(f"the image has {width} x {height} pixels (limit: {MAX_PIXELS:,})")
    # A long strip resized to a model's height would have a width of millions.
    if max(size) > MAX_RATIO * min(size):
        raise UserError(
            f"the image has {width} x {height} pixels: one side may be {MAX_RATIO} times as long "
            "as the other at most"
        )
