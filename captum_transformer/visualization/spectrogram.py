"""Draws explained sound: the map over the spectrogram, and the relevance of each moment."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.canvas import GREY
from captum_transformer.visualization.figure import color_bar_of, new_figure
from captum_transformer.visualization.maps import MapOptions, check_finite, resize, scaled_map
from captum_transformer.visualization.overlay import blend, to_display

_BINS = 128
_FRAMES = 400
_FOR, _AGAINST = "#b82e19", "#2a63b5"


def spectrogram(
    sound: Tensor,
    attribution: Tensor,
    *,
    sample_rate: float | None = None,
    seconds: float | None = None,
    title: str = "",
    **options: Unpack[MapOptions],
) -> Figure:
    """Draws an explained sound: its spectrogram with the overlay, and the sum per moment below it.

    Args:
        sound: A spectrogram ``(bins, frames)``, low frequencies first, as Whisper's
            ``input_features`` are, or a waveform ``(samples,)``, whose spectrogram is computed.
        attribution: For a spectrogram ``(bins, frames)``, or coarser, such as one value per moment
            ``(t,)`` or per patch ``(b, t)``, where ``b`` divides the bins and ``t`` the frames. For
            a waveform ``(samples,)``, which is summed to moments.
        sample_rate: The samples per second of a waveform; needed for one.
        seconds: The duration of a spectrogram, for the axis, which counts frames by default.
        title: A title.
        **options: How the attribution is drawn, see `MapOptions`.

    Returns:
        A figure; `to_array` converts it to pixels.

    Raises:
        ValueError: If a shape doesn't fit, a waveform has no sample rate, an option is invalid
            or a value is not finite.

    Example:
        >>> import torch
        >>> figure = spectrogram(torch.randn(80, 300), torch.rand(150), seconds=3.0)
        >>> figure.axes[1].get_xlabel()
        'seconds'
    """
    check_finite(attribution)
    values = attribution.detach().float().cpu()
    if sound.dim() == 1:
        power, values, seconds = _of_waveform(sound.detach().float().cpu(), values, sample_rate)
        top: float = (sample_rate or 0.0) / 2000
        vertical = "kHz"
    elif sound.dim() == 2:
        power, top, vertical = sound.detach().float().cpu(), float(len(sound)), "bin"
    else:
        raise ValueError(
            "A sound must be a spectrogram (bins, frames) or a waveform (samples,), got the shape "
            f"{tuple(sound.shape)}. Pass one sample at a time, e.g. sound[0]."
        )
    bins, frames = power.shape
    values = _spread(values if values.dim() == 2 else values[None], (bins, frames))
    picture = to_display(power)
    scaled = scaled_map(values, (bins, frames), **options)
    per_frame = values.sum(0) * (frames / (seconds or frames))

    figure = new_figure(7.5, 3.6 + 0.35 * bool(title))
    figure.suptitle(title, fontsize=12, parse_math=False)
    above, below = figure.subplots(2, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    end = seconds or float(frames)
    above.imshow(blend(picture, scaled), origin="lower", aspect="auto", extent=(0, end, 0, top))
    above.set_ylabel(vertical, fontsize=8, color=GREY)
    # Drawn in steps, since each frame has one value.
    edges = np.linspace(0, end, frames + 1)
    heights = per_frame.numpy()
    below.stairs(heights.clip(min=0), edges, fill=True, color=_FOR)
    below.stairs(heights.clip(max=0), edges, fill=True, color=_AGAINST)
    below.axhline(0, color="#6b6b6b", lw=0.6)
    unit = "second" if seconds else "frame"
    below.set_ylabel(f"per {unit}", fontsize=8, color=GREY)
    below.set_xlabel(f"{unit}s", fontsize=8, color=GREY)
    below.set_xlim(0, end)
    for axes in (above, below):
        axes.tick_params(labelsize=8, labelcolor=GREY, color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
    color_bar_of(figure, scaled, [above])
    return figure


def _spread(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Divides the relevance of a moment or patch among its frames and bins, so the sum is kept."""
    (bins, frames), shape = size, tuple(values.shape)
    if len(shape) != 2 or not values.numel() or bins % shape[0] or frames % shape[1]:
        raise ValueError(
            f"A spectrogram of {bins} bins and {frames} frames needs an attribution (b, t) or (t,) "
            f"where b divides {bins} and t divides {frames}, got the shape {shape}."
        )
    return resize(values * values.numel() / (bins * frames), size, smooth=False)


def _of_waveform(
    sound: Tensor, values: Tensor, sample_rate: float | None
) -> tuple[Tensor, Tensor, float]:
    """Returns the log power of a waveform, the relevance of each frame, and the duration."""
    if sample_rate is None or not sample_rate > 0:
        raise ValueError(
            f"A waveform needs its sample_rate in samples per second, got {sample_rate}."
        )
    if values.shape != sound.shape or not len(sound):
        raise ValueError(
            f"A waveform of {len(sound)} samples needs an attribution of the same shape, got "
            f"{tuple(values.shape)}."
        )
    hop = max(1, math.ceil(len(sound) / _FRAMES))
    window = 2 * _BINS
    padded = torch.nn.functional.pad(sound, (window // 2, window // 2))
    starts = torch.arange(0, len(sound), hop)
    pieces = padded.unfold(0, window, 1)[starts] * torch.hann_window(window)
    power = torch.fft.rfft(pieces).abs().square()[:, :_BINS].T
    # A range of 80 dB is shown.
    decibels = 10 * power.clamp(min=1e-20).log10()
    decibels = decibels.clamp(min=float(decibels.max()) - 80)
    # Each sample belongs to the last frame that starts at or before it.
    per_frame = torch.zeros(len(starts)).index_add_(0, torch.arange(len(sound)) // hop, values)
    return decibels, per_frame, len(sound) / sample_rate
