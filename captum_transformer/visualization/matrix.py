"""Draws matrices of tokens by tokens: generated text by prompt, and maps by layer and head."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_transformer.visualization.canvas import GREY, fit, text_width
from captum_transformer.visualization.colors import POSITIVE_CMAP, SIGNED_CMAP
from captum_transformer.visualization.figure import new_figure
from captum_transformer.visualization.maps import ScaledMap, Sign, check_finite, scale_map
from captum_transformer.visualization.panel import format_value
from captum_transformer.visualization.token_scale import OffScale, as_mask, scale_without
from captum_transformer.visualization.tokens import visible

_CELL = 0.3  # inches
_SIZE = 9.0  # points
_LONGEST = 150.0  # pixels of a token's name
_SIDE = 1.7  # inches of a small map


def token_matrix(
    attribution: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_label: str = "generated",
    column_label: str = "prompt",
    title: str = "",
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: OffScale = None,
) -> Figure:
    """Draws a matrix of tokens by tokens, with both texts written out.

    For generated text, each row explains one generated token: pass one sample of the result of
    `attribute_generated`. Any other matrix with named rows and columns works as well.

    Args:
        attribution: ``(rows, columns)``.
        rows: The tokens at the left, for instance the generated ones.
        columns: The tokens at the top, for instance those of the prompt.
        row_label: The description of the rows.
        column_label: The description of the columns.
        title: A title.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: the strongest value.
        off_scale: For each column, whether it is left out when the scale is found: special tokens,
            or the first of a decoder, which may hold nearly all relevance. These are hatched.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If the attribution doesn't fit the tokens, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = token_matrix(torch.rand(2, 3), ["very", "fine"], ["the", "film", "was"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['very', 'fine']
    """
    if attribution.shape != (len(rows), len(columns)) or not attribution.numel():
        raise ValueError(
            f"{len(rows)} rows and {len(columns)} columns need an attribution of the shape "
            f"({len(rows)}, {len(columns)}), got {tuple(attribution.shape)}. Pass one sample at a "
            "time, e.g. attribution[0]."
        )
    check_finite(attribution)
    values = attribution.detach().float().cpu()
    off = as_mask(off_scale, len(columns))
    scaled = scale_without(values, off.expand_as(values), sign=sign, scale=scale)
    names = [[fit(visible(token), _LONGEST, _SIZE) for token in each] for each in (rows, columns)]
    left, above = (max(text_width(name, _SIZE) for name in each) / 100 for each in names)
    figure = new_figure(
        max(2.5, len(columns) * _CELL + left + 1.5),
        max(1.5, len(rows) * _CELL + above + 0.9 + 0.25 * bool(title) + 0.2 * bool(off.any())),
    )
    axes = figure.subplots()
    _draw(axes, scaled)
    for column in off.nonzero()[:, 0].tolist():
        whole = Rectangle((column - 0.5, -0.5), 1, len(rows))
        whole.set(fill=False, hatch="////", edgecolor=GREY, linewidth=0)
        axes.add_patch(whole)
    axes.set_yticks(range(len(rows)), names[0], fontsize=_SIZE, parse_math=False)
    axes.set_xticks(range(len(columns)), names[1], fontsize=_SIZE, rotation=90, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_ylabel(row_label, fontsize=8, color=GREY, parse_math=False)
    axes.set_xlabel(column_label, fontsize=8, color=GREY, parse_math=False)
    axes.xaxis.set_label_position("top")
    if off.any():
        note = "hatched: not on the scale"
        axes.text(0, len(rows) - 0.4, note, fontsize=7, color=GREY, va="top")
    axes.set_title(title, fontsize=11, parse_math=False)
    _bar(figure, scaled, [axes])
    return figure


def map_grid(
    maps: Mapping[str, Tensor],
    *,
    title: str = "",
    sign: Sign = "auto",
    scale: float | None = None,
) -> Figure:
    """Draws small maps of tokens by tokens, a row for each layer and a column for each head.

    All have one scale. A map of one layer is what `relevance_maps` of a method returns:
    ``{"layer 0": method.relevance_maps(inputs, target)["x", "x"][0], ...}``, whose methods of one
    layer keep the heads apart with ``average_heads=False``. To see which image patches a single
    token attends to, draw its row with `image_grid`.

    Args:
        maps: The maps by the name of their row, each ``(heads, queries, keys)`` or
            ``(queries, keys)``.
        title: A title for the whole.
        sign: Which part of the maps is shown, see `scale_map`.
        scale: The value with the strongest colour; None: all but the strongest 0.5 % lie below.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If there is no map, a shape is another one or a value is not finite.

    Example:
        >>> import torch
        >>> figure = map_grid({"layer 0": torch.rand(2, 5, 5), "layer 1": torch.rand(2, 5, 5)})
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['head 0', 'head 1']
    """
    if not maps:
        raise ValueError("There is no map to draw.")
    layers = {name: _heads(name, values) for name, values in maps.items()}
    together = torch.cat([values.flatten() for values in layers.values()])
    common = scale_map(together, sign=sign, scale=scale)
    columns = max(len(values) for values in layers.values())
    figure = new_figure(_SIDE * columns + 1.0, _SIDE * len(layers) + 0.5 + 0.35 * bool(title))
    figure.suptitle(title, fontsize=12, parse_math=False)
    frames = figure.subplots(len(layers), columns, squeeze=False)
    for line, (name, values) in zip(frames, layers.items(), strict=True):
        line[0].set_ylabel(name, fontsize=10, parse_math=False)
        for head, frame in enumerate(line):
            if head >= len(values):
                frame.set_axis_off()
                continue
            _draw(
                frame,
                scale_map(
                    values[head],
                    sign="signed" if common.signed else sign,
                    scale=common.scale or 1.0,
                ),
            )
            frame.set(xticks=[], yticks=[])
    if columns > 1:
        for head, frame in enumerate(frames[0]):
            frame.set_title(f"head {head}", fontsize=10)
    frames[-1, 0].set_xlabel("keys →, queries ↓", fontsize=8, color=GREY, loc="left")
    _bar(figure, common, frames.ravel().tolist())
    return figure


def _heads(name: str, values: Tensor) -> Tensor:
    if values.dim() not in (2, 3) or not values.numel():
        raise ValueError(
            f"A map must have the shape (heads, queries, keys) or (queries, keys), got "
            f"{tuple(values.shape)} for {name!r}. Pass one sample at a time, e.g. maps[0]."
        )
    check_finite(values)
    return values.detach().float().cpu().reshape(-1, *values.shape[-2:])


def _draw(axes: Axes, scaled: ScaledMap) -> None:
    values = scaled.values.numpy()
    # Cells rarely have a whole number of pixels: with nearest, some would be wider than others.
    style = "nearest" if max(values.shape) < 60 else "antialiased"
    if scaled.signed:
        axes.imshow(values, SIGNED_CMAP, vmin=-1, vmax=1, interpolation=style)
    else:
        axes.imshow(values, POSITIVE_CMAP, vmin=0, vmax=1, interpolation=style)
    axes.spines[:].set_visible(False)


def _bar(figure: Figure, scaled: ScaledMap, axes: list[Axes]) -> None:
    bar = figure.colorbar(axes[0].images[0], ax=axes, shrink=0.8, pad=0.02, aspect=30)
    ticks = [-1, 0, 1] if scaled.signed else [0, 1]
    bar.set_ticks(ticks, labels=[format_value(tick * scaled.scale) for tick in ticks])
    bar.ax.tick_params(labelsize=8, labelcolor=GREY, color=GREY)
    bar.outline.set_visible(False)
