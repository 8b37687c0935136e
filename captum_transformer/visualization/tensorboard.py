"""Writes explanations to TensorBoard, without Lightning."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.canvas import Image
from captum_transformer.visualization.maps import MapOptions, Sign
from captum_transformer.visualization.panel import panel
from captum_transformer.visualization.token_scale import OffScale
from captum_transformer.visualization.token_strip import token_strip
from captum_transformer.visualization.tokens import token_table

FONT_SCALE = 2.0
"""The size of letters in logged pictures, which cards show at about half their size."""


class ImageWriter(Protocol):
    """The interface for logging images; `torch.utils.tensorboard.SummaryWriter` implements it."""

    def add_image(
        self, tag: str, img_tensor: Image, global_step: int | None = ..., *, dataformats: str = ...
    ) -> Any:
        """Writes one image."""


@runtime_checkable
class TextWriter(ImageWriter, Protocol):
    """The interface for logging images and text."""

    def add_text(self, tag: str, text_string: str, global_step: int | None = ...) -> Any:
        """Writes one text in Markdown."""


def log_attributions(
    writer: ImageWriter,
    tag: str,
    inputs: Tensor,
    attributions: Tensor | Mapping[str, Tensor],
    *,
    global_step: int,
    captions: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    **options: Unpack[MapOptions],
) -> None:
    """Logs one picture per image and attribution: input and overlay side by side.

    The tags are ``{tag}/{name}`` or ``{tag}/{name}/{key}``. They must not change during
    training (put a predicted class in the caption), so that TensorBoard's step slider shows
    the history of one image. The part before the tag's first ``/`` is its group on the page.

    Args:
        writer: A `torch.utils.tensorboard.SummaryWriter`, or an object with the same `add_image`.
        tag: The beginning of the tags.
        inputs: The images ``(B, C, H, W)`` in any range, with 1 or 3 channels.
        attributions: Their attributions, ``(B, C, H, W)`` or ``(B, H, W)``, or several of them by
            name, for instance one per method.
        global_step: The step on the slider.
        captions: A caption for each image.
        names: A name for each image; by default ``sample_0``, ``sample_1``, ...
        **options: How the attribution is drawn, see `MapOptions`.

    Raises:
        ValueError: If the numbers of images, attributions, captions or names differ, or a picture
            can't be drawn.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> images, maps = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
        >>> with TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     log_attributions(writer, "attribution", images, {"saliency": maps}, global_step=100)
    """
    methods = {"": attributions} if isinstance(attributions, Tensor) else attributions
    names, captions = _labels(len(inputs), names, captions)
    for key, values in methods.items():
        _check_count("attributions", len(values), len(inputs))
        for image, attribution, name, caption in zip(inputs, values, names, captions, strict=True):
            writer.add_image(
                _join(tag, name, key),
                panel(image, attribution, caption, font_scale=FONT_SCALE, **options),
                global_step,
                dataformats="HWC",
            )


def log_token_attributions(
    writer: ImageWriter,
    tag: str,
    tokens: Sequence[Sequence[str]],
    attributions: Sequence[Tensor] | Tensor | Mapping[str, Sequence[Tensor] | Tensor],
    *,
    global_step: int,
    captions: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    table: bool = False,
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: Sequence[OffScale] | None = None,
) -> None:
    """Logs one picture per text and attribution: its tokens as coloured boxes.

    TensorBoard removes every style from text, so a heatmap of tokens has to be an image.

    Args:
        writer: A `torch.utils.tensorboard.SummaryWriter`, or an object with the same methods.
        tag: The beginning of the tags, see `log_attributions`.
        tokens: The tokens of each text.
        attributions: A tensor ``(N,)`` or ``(N, D)`` for each text, or several such lists by name.
        global_step: The step on the slider.
        captions: A caption for each text.
        names: A name for each text; by default ``sample_0``, ``sample_1``, ...
        table: Also write the exact values, as a Markdown table under the same tag.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: each text has its own.
        off_scale: For each text, which of its tokens are left out when the scale is found, see
            `token_strip`.

    Raises:
        TypeError: If a table is requested and the writer doesn't support text.
        ValueError: If the numbers of texts, attributions, captions or names differ, or a picture
            can't be drawn.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> tokens, values = [["a", "fine", "film"]], torch.tensor([[0.1, 0.9, 0.2]])
        >>> with TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     log_token_attributions(writer, "attribution", tokens, values, global_step=100)
    """
    methods = attributions if isinstance(attributions, Mapping) else {"": attributions}
    names, captions = _labels(len(tokens), names, captions)
    off_scale = [None] * len(tokens) if off_scale is None else off_scale
    _check_count("masks in off_scale", len(off_scale), len(tokens))
    texts = writer if isinstance(writer, TextWriter) else None
    if table and texts is None:
        raise TypeError(
            f"table=True needs a writer with add_text, which {type(writer).__name__} lacks. Pass a "
            "SummaryWriter, or table=False."
        )
    for key, values in methods.items():
        _check_count("attributions", len(values), len(tokens))
        for words, attribution, name, caption, off in zip(
            tokens, values, names, captions, off_scale, strict=True
        ):
            full_tag = _join(tag, name, key)
            strip = token_strip(
                words,
                attribution,
                caption,
                sign=sign,
                scale=scale,
                off_scale=off,
                font_scale=FONT_SCALE,
            )
            writer.add_image(full_tag, strip, global_step, dataformats="HWC")
            if table and texts is not None:
                texts.add_text(full_tag, token_table(words, attribution), global_step)


def _labels(
    count: int, names: Sequence[str] | None, captions: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str]]:
    names = [f"sample_{number}" for number in range(count)] if names is None else names
    captions = [""] * count if captions is None else captions
    _check_count("names", len(names), count)
    _check_count("captions", len(captions), count)
    return names, captions


def _check_count(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"Expected as many {what} as samples, {expected}, got {got}.")


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
