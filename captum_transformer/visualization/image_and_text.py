"""Draws an image and its text, for multimodal models."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.visualization.canvas import Canvas, Image
from captum_transformer.visualization.maps import MapOptions, common_scale, scaled_map
from captum_transformer.visualization.overlay import blend, to_display
from captum_transformer.visualization.panel import (
    CAPTION_LINE,
    MARGIN,
    SCALE_WIDTH,
    color_bar,
    fit_height,
    write_caption,
)
from captum_transformer.visualization.token_scale import OffScale, scale_tokens
from captum_transformer.visualization.token_strip import TokenBoxes


def image_and_text(
    image: Tensor | Sequence[Tensor],
    image_attribution: Tensor | Sequence[Tensor],
    tokens: Sequence[str],
    text_attribution: Tensor,
    caption: str = "",
    *,
    height: int = 256,
    text_width: int = 300,
    text_scale: float | None = None,
    off_scale: OffScale = None,
    **options: Unpack[MapOptions],
) -> Image:
    r"""Draws the overlays of one or several images, with the tokens of a text on their right.

    Images and text have separate scales, since an image's relevance is spread over many more values
    than a text's. Put their shares of the relevance in the caption.

    Args:
        image: ``(3, H, W)``, ``(1, H, W)`` or ``(H, W)``, in any range; see `to_display`. Several
            images stand side by side and have one scale.
        image_attribution: ``(C, H, W)`` or ``(H, W)``, see `overlay`; one for each image.
        tokens: The N tokens as strings, or its words, see `merge_words`.
        text_attribution: ``(N,)`` or ``(N, D)``, see `token_strip`.
        caption: One or several lines, see `panel`.
        height: The height of the drawn image, in pixels.
        text_width: The width in pixels of the lines of text.
        text_scale: The attribution of a token with the strongest colour; None: the strongest token.
        off_scale: For each token, whether the scale leaves it out, see `token_strip`.
        **options: How the image's attribution is drawn, see `MapOptions`; ``sign`` also applies to
            the text.

    Returns:
        A uint8 array ``(height, width, 3)``.

    Raises:
        ValueError: If a shape doesn't fit, an option is invalid or a value is not finite.

    Example:
        >>> import torch
        >>> image, pixels = torch.rand(3, 32, 32), torch.rand(3, 32, 32)
        >>> words, values = ["two", "cats", "?"], torch.tensor([0.1, 0.7, 0.0])
        >>> image_and_text(image, pixels, words, values, "answer: yes").shape
        (295, 672, 3)
    """
    if height < 1:
        raise ValueError(f"height must be a positive number of pixels, got {height}.")
    if text_width < 100:
        raise ValueError(f"text_width must be at least 100 pixels, got {text_width}.")
    images = [image] if isinstance(image, Tensor) else list(image)
    maps = [image_attribution] if isinstance(image_attribution, Tensor) else list(image_attribution)
    if len(images) != len(maps) or not images:
        raise ValueError(f"{len(images)} images need as many attributions, got {len(maps)}.")
    of_text = scale_tokens(
        tokens,
        text_attribution,
        off_scale=off_scale,
        sign=options.get("sign", "auto"),
        scale=text_scale,
    )
    if len(images) > 1:
        options = common_scale(maps, **options)
    pictures = []
    for pixels, attribution in zip(map(to_display, images), maps, strict=True):
        scaled = scaled_map(attribution, pixels.shape[:2], **options)
        pictures.append(fit_height(blend(pixels, scaled), height))
    boxes = TokenBoxes.laid_out(of_text, text_width)
    lines = caption.splitlines()
    top = MARGIN + len(lines) * CAPTION_LINE
    bar = MARGIN + sum(MARGIN + picture.shape[1] for picture in pictures)
    text = bar + SCALE_WIDTH + MARGIN
    canvas = Canvas(text + text_width + MARGIN, top + max(height, boxes.height) + MARGIN)
    write_caption(canvas, lines)
    left = MARGIN
    for picture in pictures:
        canvas.paste(picture, left, top)
        left += picture.shape[1] + MARGIN
    color_bar(canvas, scaled, bar, top, height)
    boxes.draw(canvas, text, top)
    return canvas.image()
