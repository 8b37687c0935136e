"""A picture with the relevance of its parts."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.explainers.explained import Explained, display, in_notebook
from captum_transformer.visualization import MapOptions, panel
from captum_transformer.visualization.canvas import Image


@dataclass(frozen=True)
class ExplainedImage(Explained):
    """A picture with the relevance of its parts.

    Attributes:
        picture: the picture as it was given, as an image of PIL.
        map: the relevance on it, ``(height, width)``, a value for each part that the model's input
            tells apart: that of the patch which the part is in, or if there is no `grid`, of the
            pixel. What was cut away has none.
        relevance: the relevance of the model's input, ``(channels, height, width)``.
        inputs: the model's input.
        grid: into how many rows and columns of patches the model cuts its input; None if that
            isn't known.
    """

    picture: Any
    map: Tensor
    relevance: Tensor
    inputs: Tensor
    grid: tuple[int, int] | None

    def draw(self, *, height: int = 256, **options: Unpack[MapOptions]) -> Image:
        """Draws the picture, and its map over it.

        Args:
            height: the height in pixels that the picture is shown with.
            **options: what of the map is shown, see
                :class:`~captum_transformer.visualization.MapOptions`.

        Returns:
            A uint8 array ``(height, width, 3)``.
        """
        note = "" if self.grid is None else "summed by patch"
        return panel(self.picture, self.map, self.caption, height=height, note=note, **options)

    def show(self, *, height: int = 256, **options: Unpack[MapOptions]) -> None:
        """Shows the picture and its map, in a notebook or by the system's program for pictures.

        Args:
            height: the height in pixels that the picture is shown with.
            **options: see `draw`.
        """
        from PIL import Image as Pillow

        drawn = Pillow.fromarray(self.draw(height=height, **options))
        if in_notebook():
            display(drawn)
        else:
            drawn.show()

    def _repr_png_(self) -> bytes:
        from PIL import Image as Pillow

        stream = BytesIO()
        Pillow.fromarray(self.draw()).save(stream, format="PNG")
        return stream.getvalue()
