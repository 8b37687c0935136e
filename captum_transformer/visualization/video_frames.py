"""Draws the frames of a video, above the same frames with their maps."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.figure import color_bar_of, new_figure, show_image
from captum_transformer.visualization.maps import MapOptions, common_scale, scaled_map
from captum_transformer.visualization.overlay import blend, to_display

_SIDE = 1.6  # inches


def video_frames(
    video: Tensor,
    attribution: Tensor,
    *,
    title: str = "",
    most: int = 8,
    **options: Unpack[MapOptions],
) -> Figure:
    """Draws frames of a video in a row, and under each its overlay; all have one scale.

    Args:
        video: ``(T, C, H, W)`` with 1 or 3 channels, in any range; all frames are stretched alike.
        attribution: ``(T, C, H, W)`` or ``(T, H, W)``, or coarser in time and space, as one value
            per tubelet is: its number of frames, height and width divide the video's.
        title: A title for the whole.
        most: The maximum number of frames, drawn at equal distances. The scale is always that of
            all frames.
        **options: How the attribution is drawn, see `MapOptions`. Without a ``scale``, the
            frames have a common one.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If a shape doesn't fit, an option is invalid or a value is not finite.

    Example:
        >>> import torch
        >>> figure = video_frames(torch.rand(16, 3, 32, 32), torch.rand(8, 4, 4), most=4)
        >>> [axes.get_title() for axes in figure.axes[:4]]
        ['frame 0', 'frame 5', 'frame 10', 'frame 15']
    """
    if video.dim() != 4 or not video.numel():
        raise ValueError(
            f"A video must have the shape (T, C, H, W), got {tuple(video.shape)}. Pass one sample "
            "at a time, e.g. video[0]."
        )
    length = len(video)
    if attribution.dim() not in (3, 4) or not len(attribution) or length % len(attribution):
        raise ValueError(
            f"A video of {length} frames needs an attribution of the shape (t, C, h, w) or "
            f"(t, h, w), where t divides {length}, got {tuple(attribution.shape)}."
        )
    if most < 1:
        raise ValueError(f"most must be a positive number of frames, got {most}.")
    options = common_scale(attribution, **options)
    chosen = torch.linspace(0, length - 1, min(most, length)).round().long().tolist()
    # Converted as one picture, so that no frame is stretched to its own range.
    height, width = video.shape[-2:]
    pictures = to_display(video.transpose(0, 1).flatten(1, 2)).reshape(length, height, width, 3)
    figure = new_figure(
        _SIDE * len(chosen) + 0.6, 2 * _SIDE * height / width + 0.4 + 0.35 * bool(title)
    )
    figure.suptitle(title, fontsize=12, parse_math=False)
    frames = figure.subplots(2, len(chosen), squeeze=False)
    for (above, below), number in zip(frames.T, chosen, strict=True):
        show_image(above, pictures[number], f"frame {number}")
        scaled = scaled_map(
            attribution[number * len(attribution) // length], (height, width), **options
        )
        show_image(below, blend(pictures[number], scaled))
    color_bar_of(figure, scaled, frames.ravel().tolist())
    return figure
