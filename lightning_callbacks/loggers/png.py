"""PNG files, for loggers that have no place for images."""

import re
from pathlib import Path
from typing import Any

from matplotlib.image import imsave

from captum_transformer.visualization.canvas import Image


class PNGWriter:
    """Writes images as files, with the part of a SummaryWriter's face that images need.

    An image with the tag ``attribution/sample_0`` and the step 200 becomes
    ``attribution/sample_0/step_00000200.png``.

    Args:
        folder: Where the files go; it is made when the first one is written.

    Example:
        >>> PNGWriter("logs").path("attribution/sample_0", 200).as_posix()
        'logs/attribution/sample_0/step_00000200.png'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, tag: str, global_step: int) -> Path:
        """The file of an image.

        Args:
            tag: The image's tag, whose slashes become folders.
            global_step: Its step.

        Returns:
            The path.
        """
        # A tag may hold what a file name can't, or "..", which would lead out of the folder.
        parts = [re.sub(r"[^\w.\- ]|^\.+$", "_", part) for part in tag.split("/") if part]
        return self.folder.joinpath(*parts, f"step_{global_step:08d}.png")

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
        path = self.path(tag, global_step or 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(path, img_tensor)
