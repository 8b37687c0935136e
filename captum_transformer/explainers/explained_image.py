"""A picture with the relevance of its parts."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.explainers.explained import Explained, display, in_notebook
from captum_transformer.visualization import MapOptions, panel
from captum_transformer.visualization.canvas import Image
from captum_transformer.visualization.patches import BY_PATCH


@dataclass(frozen=True)
class ExplainedImage(Explained):
    """A picture with the relevance of its parts.

    Attributes:
        picture: the original picture, as a PIL image.
        map: the relevance on it, ``(height, width)``: each place has the value of its patch in the
            model's input, or, without a `grid`, of its pixel there. Parts that were cropped away
            have zero.
        relevance: the relevance of the model's input, ``(channels, height, width)``.
        inputs: the model's input.
        grid: the numbers of rows and columns of patches that the model cuts its input into; None if
            unknown.
    """

    picture: Any
    map: Tensor
    relevance: Tensor
    inputs: Tensor
    grid: tuple[int, int] | None

    def draw(self, *, height: int = 256, **options: Unpack[MapOptions]) -> Image:
        """Draws the picture, and its map over it.

        Args:
            height: the height of the picture in the drawing, in pixels.
            **options: how the map is drawn, see
                :class:`~captum_transformer.visualization.MapOptions`.

        Returns:
            A uint8 array ``(height, width, 3)``.
        """
        note = "" if self.grid is None else BY_PATCH
        return panel(self.picture, self.map, self.caption, height=height, note=note, **options)

    def show(self, *, height: int = 256, **options: Unpack[MapOptions]) -> None:
        """Shows the picture and its map, in a notebook or with the system's image viewer.

        Args:
            height: the height of the picture in the drawing, in pixels.
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
