"""The tokens of a text in a terminal's colours."""

from collections.abc import Sequence

from torch import Tensor

from captum_transformer.visualization.canvas import Color
from captum_transformer.visualization.colors import ink_on, paper_colors
from captum_transformer.visualization.maps import Sign
from captum_transformer.visualization.token_scale import OffScale, scale_tokens

_DIM, _RESET = "\x1b[2m", "\x1b[0m"


def token_ansi(
    tokens: Sequence[str],
    attribution: Tensor,
    *,
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: OffScale = None,
) -> str:
    r"""Writes a text with ANSI escape sequences that colour the background of each token.

    The colours are those of `token_strip`, in 24 bits, which all current terminals support. Control
    characters in the tokens are replaced, so that a text can't control the terminal.

    Args:
        tokens: The N tokens as strings, or its words, see `merge_words`.
        attribution: ``(N,)`` or ``(N, D)``, as for `token_strip`.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: each text has its own.
        off_scale: For each token, whether it is left out when the scale is found, see
            `token_strip`. These are dim and have no background.

    Returns:
        One line, to be printed.

    Raises:
        ValueError: If the tokens and the attribution don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> token_ansi(["fine"], torch.tensor([1.0]))
        '\x1b[38;2;255;255;255;48;2;184;48;34mfine\x1b[0m'
    """
    found = scale_tokens(tokens, attribution, off_scale=off_scale, sign=sign, scale=scale)
    grounds = paper_colors(found.scaled.values.numpy())
    boxes = []
    for label, ground, off in zip(found.labels, grounds, found.off_scale, strict=True):
        ink, paper = _code(ink_on(ground)), _code(ground.tolist())
        style = _DIM if off else f"\x1b[38;2;{ink};48;2;{paper}m"
        boxes.append(f"{style}{label}{_RESET}")
    return " ".join(boxes)


def _code(color: Color) -> str:
    return ";".join(str(round(255 * part)) for part in color)
