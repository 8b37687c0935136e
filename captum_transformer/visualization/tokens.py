"""Reduces the attribution of a text to one value per token, and writes it as a table."""

import re
from collections.abc import Sequence

from torch import Tensor

from captum_transformer.visualization.maps import check_finite


def token_table(tokens: Sequence[str], attribution: Tensor) -> str:
    """Writes the exact attribution of each token as a Markdown table.

    Args:
        tokens: The N tokens as strings. They are escaped, so that ``**``, ``|`` or ``<b>`` in a
            text are shown literally.
        attribution: ``(N,)`` or ``(N, D)``, as for `token_strip`.

    Returns:
        The table.

    Raises:
        ValueError: If the tokens and the attribution don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> print(token_table(["good", "|"], torch.tensor([0.75, -0.5])))
        | # | token | attribution |
        | --: | :-- | --: |
        | 0 | good | 0.75 |
        | 1 | &#124; | -0.5 |
    """
    values = token_values(tokens, attribution).tolist()
    rows = [
        f"| {number} | {_escape(visible(token))} | {value:.6g} |"
        for number, (token, value) in enumerate(zip(tokens, values, strict=True))
    ]
    return "\n".join(["| # | token | attribution |", "| --: | :-- | --: |", *rows])


def token_values(tokens: Sequence[str], attribution: Tensor) -> Tensor:
    """Reduces the attribution of one text to one value per token.

    Args:
        tokens: The N tokens as strings.
        attribution: ``(N,)``, or ``(N, D)``, whose features are summed.

    Returns:
        Detached float32 values ``(N,)``.

    Raises:
        ValueError: If the shape is not one of these, or a value is not finite.
    """
    if attribution.dim() not in (1, 2) or attribution.shape[0] != len(tokens) or not len(tokens):
        raise ValueError(
            f"{len(tokens)} tokens need an attribution of the shape (N,) or (N, D) with one entry "
            f"for each, got {tuple(attribution.shape)}. Pass one text at a time, with the tokens "
            "of its padding or without both."
        )
    check_finite(attribution)
    values = attribution.detach().float()
    return values if values.dim() == 1 else values.sum(1)


def visible(token: str) -> str:
    r"""Replaces characters of a token that are invisible or would break the line by visible ones.

    Args:
        token: Any string.

    Returns:
        One line of text, never empty.

    Example:
        >>> visible("one\ntwo"), visible(" "), visible("")
        ('one⏎two', '␣', '∅')
    """
    line = token.replace("\n", "⏎").replace("\t", "⇥")
    line = "".join(character if character.isprintable() else "�" for character in line)
    return line if line.strip() else "␣" * len(line) or "∅"


def _escape(text: str) -> str:
    # Entities rather than backslashes: Markdown dialects differ in what a backslash escapes, and
    # none of them reads an entity as syntax.
    return re.sub(r"[^\w\s]|_", lambda match: f"&#{ord(match[0])};", text)
