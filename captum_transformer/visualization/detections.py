"""Draws detected objects, each box with its map."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.figure import (
    color_bar_of,
    new_figure,
    scale_note,
    show_image,
)
from captum_transformer.visualization.maps import MapOptions, common_scale, scaled_map
from captum_transformer.visualization.overlay import blend, to_display

# Okabe and Ito's colours, which can be distinguished with any colour vision; without black and
# yellow, which are hard to see in an image.
BOX_COLORS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"]

_SIDE = 2.6  # inches


def detections(
    image: Tensor,
    boxes: Tensor,
    attributions: Sequence[Tensor] | Tensor,
    labels: Sequence[str],
    *,
    title: str = "",
    columns: int = 4,
    **options: Unpack[MapOptions],
) -> Figure:
    """Draws the image with all boxes, then each box over the map of its own score.

    Args:
        image: ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``, in any range; see `to_display`.
        boxes: ``(N, 4)``: the left, upper, right and lower end of each box in pixels of the image.
            DETR's are centre and size as shares of the image:
            ``torchvision.ops.box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([W, H, W, H])``.
        attributions: One for each box, ``(C, H, W)`` or ``(H, W)``, or coarser, see `overlay`.
        labels: The label of each box.
        title: A title for the whole.
        columns: The number of pictures in a row.
        **options: How the attributions are drawn, see `MapOptions`. Without a ``scale``, each
            map has its own, which is written below it.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If the numbers differ, a box is empty or outside the image, or a map can't be
            drawn.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[2.0, 4.0, 20.0, 30.0], [18.0, 2.0, 31.0, 16.0]])
        >>> figure = detections(torch.rand(3, 32, 32), boxes, torch.rand(2, 8, 8), ["cat", "dog"])
        >>> [axes.get_title() for axes in figure.axes]
        ['', 'cat', 'dog']
    """
    picture = to_display(image)
    height, width, _ = picture.shape
    _check(boxes, attributions, labels, (height, width))
    if columns < 1:
        raise ValueError(f"columns must be a positive number, got {columns}.")
    own_scales = options.get("scale") is None
    if not own_scales:
        options = common_scale(attributions, **options)
    frames_wanted = 1 + len(labels)
    columns = min(columns, frames_wanted)
    rows = -(-frames_wanted // columns)
    figure = new_figure(
        _SIDE * columns + 0.6 * (not own_scales),
        rows * (_SIDE * height / width + 0.3 + 0.25 * own_scales) + 0.35 * bool(title),
    )
    figure.suptitle(title, fontsize=12, parse_math=False)
    frames = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    show_image(frames[0], picture)
    for number, (box, attribution, label) in enumerate(
        zip(boxes.tolist(), attributions, labels, strict=True)
    ):
        color = BOX_COLORS[number % len(BOX_COLORS)]
        scaled = scaled_map(attribution, (height, width), **options)
        frame = frames[1 + number]
        note = scale_note(scaled) if own_scales else ""
        show_image(frame, blend(picture, scaled), label, note)
        _draw_box(frame, box, color)
        _draw_box(frames[0], box, color)
    for frame in frames[frames_wanted:]:
        frame.remove()
    if not own_scales:
        color_bar_of(figure, scaled, frames[:frames_wanted])
    return figure


def _check(
    boxes: Tensor,
    attributions: Sequence[Tensor] | Tensor,
    labels: Sequence[str],
    size: tuple[int, int],
) -> None:
    count = len(labels)
    if boxes.shape != (count, 4) or len(attributions) != count or not count:
        raise ValueError(
            f"{count} labels need boxes of the shape ({count}, 4) and as many attributions, got "
            f"boxes of the shape {tuple(boxes.shape)} and {len(attributions)} attributions."
        )
    left, upper, right, lower = boxes.detach().float().cpu().unbind(1)
    height, width = size
    # A detector's box may extend a little beyond the edge.
    inside = (right > 0) & (lower > 0) & (left < width) & (upper < height)
    # Boxes in shares of the image that were not multiplied by its size would all be one pixel.
    shares = bool((boxes.abs() <= 1).all()) and min(size) > 2
    if not bool(((right > left) & (lower > upper) & inside).all()) or shares:
        raise ValueError(
            f"Each box must be (left, upper, right, lower) in pixels of an image of {width} x "
            f"{height}, got {boxes.tolist()}. Convert centres and sizes with "
            "torchvision.ops.box_convert, and multiply shares of the image with its size."
        )


def _draw_box(axes: Axes, box: Sequence[float], color: str) -> None:
    left, upper, right, lower = box
    # imshow puts the first pixel's centre at zero.
    corner = (left - 0.5, upper - 0.5)
    # A dark rim, so that the box is visible on a background of its own colour.
    rim = [withStroke(linewidth=3.5, foreground="#1a1a1a")]
    axes.add_patch(
        Rectangle(corner, right - left, lower - upper, fill=False, ec=color, lw=2, path_effects=rim)
    )
