"""Several explanations of one or several images, side by side."""

from collections.abc import Mapping
from typing import TypeAlias, cast

from matplotlib.figure import Figure
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
from captum_transformer.visualization.patches import BY_PATCH

Columns: TypeAlias = Mapping[str, Tensor]
"""Attributions by the title of their column."""

_SIDE = 2.0  # inches


def image_grid(
    images: Tensor | Mapping[str, Tensor],
    attributions: Columns | Mapping[str, Columns],
    *,
    title: str = "",
    **options: Unpack[MapOptions],
) -> Figure:
    """Draws a table of explanations: classes by methods, images by epochs, layers by heads.

    The image is at the left of each row. Without a ``scale``, each map has its own, which is
    written below it; with one, such as from `common_scale`, the colours of all maps have the same
    meaning and share a colour bar.

    Args:
        images: The image that all rows explain, ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``, or one
            for each row by the row's name.
        attributions: ``{column: attribution}`` for a single row, or ``{row: {column:
            attribution}}``. An attribution is ``(C, H, W)`` or ``(H, W)``, or coarser than its
            image. A column that is missing in a row stays empty.
        title: A title for the whole.
        **options: How the attributions are drawn, see `MapOptions`. With a ``grid``, a line below
            says that the values are summed by patch.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If there is nothing to draw, a row has no image, a shape doesn't fit, an option
            is invalid or a value is not finite.

    Example:
        >>> import torch
        >>> image, cat, dog = torch.rand(3, 32, 32), torch.randn(3, 32, 32), torch.randn(3, 32, 32)
        >>> figure = image_grid(image, {"cat": cat, "dog": dog}, smooth=True)
        >>> [axes.get_title() for axes in figure.axes]
        ['input', 'cat', 'dog']
    """
    rows = _rows(attributions)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if not columns:
        raise ValueError("There is no attribution to draw.")
    if isinstance(images, Mapping) and set(images) != set(rows):
        raise ValueError(
            f"The images are named {sorted(images)}, the rows {sorted(rows)}: give one image for "
            "each row, or a single image for all."
        )
    pictures = {
        name: to_display(images[name] if isinstance(images, Mapping) else images) for name in rows
    }
    shapes = [picture.shape for picture in pictures.values()]
    heights = [_SIDE * height / width for height, width, _ in shapes]
    own_scales = options.get("scale") is None
    if not own_scales:
        # One bar shows the colours of all maps, so all have the same sign.
        options = common_scale(
            [value for row in rows.values() for value in row.values()], **options
        )
    figure = new_figure(
        _SIDE * (1 + len(columns)) + (0.4 if own_scales else 1.0),
        sum(heights) + len(rows) * 0.3 * own_scales + 0.35 + 0.35 * bool(title),
    )
    figure.suptitle(title, fontsize=12, parse_math=False)
    if options.get("grid") is not None:
        figure.supxlabel(BY_PATCH, fontsize=8)
    frames = figure.subplots(
        len(rows), 1 + len(columns), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    first = True
    for line, (name, row) in zip(frames, rows.items(), strict=True):
        show_image(line[0], pictures[name], "input" if first else "")
        line[0].set_ylabel(name, fontsize=10, parse_math=False)
        for frame, column in zip(line[1:], columns, strict=True):
            above = column if first else ""
            if column not in row:
                frame.set_axis_off()
                frame.set_title(above, fontsize=10, parse_math=False)
                continue
            scaled = scaled_map(row[column], pictures[name].shape[:2], **options)
            note = scale_note(scaled) if own_scales else ""
            show_image(frame, blend(pictures[name], scaled), above, note)
        first = False
    if not own_scales:
        color_bar_of(figure, scaled, frames.ravel().tolist())
    return figure


def _rows(attributions: Columns | Mapping[str, Columns]) -> Mapping[str, Columns]:
    single = [isinstance(value, Tensor) for value in attributions.values()]
    if any(single) and not all(single):
        raise ValueError(
            "The attributions must be {column: tensor} or {row: {column: tensor}}, not a mixture."
        )
    if any(single):
        return {"": cast(Columns, attributions)}
    return cast(Mapping[str, Columns], attributions)
