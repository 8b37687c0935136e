"""Finds the colour scale of a text, from which some tokens can be left out.

`[CLS]`, a start token or the first token of a decoder may have almost all relevance of any text.
If they set the scale, no word would have a visible colour.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict

import torch
from torch import Tensor

from captum_transformer.visualization.maps import ScaledMap, Sign, scale_map
from captum_transformer.visualization.panel import format_value
from captum_transformer.visualization.tokens import token_values, visible

OffScale: TypeAlias = Sequence[bool] | Tensor | None
"""For each token, whether it is left out when the colour scale is found; None: none is."""


class TokenOptions(TypedDict, total=False):
    """How the attribution of a text is coloured; all functions for texts take these options.

    Attributes:
        sign: ``"auto"`` (default), ``"signed"``, ``"positive"`` or ``"absolute"``, see `Sign`.
        scale: The attribution with the strongest colour. None (default): each text has its own.
        off_scale: For each token, whether it is left out when the scale is found.
    """

    sign: Sign
    scale: float | None
    off_scale: OffScale


class ScaledTokens(NamedTuple):
    """The tokens of a text in units of their colour scale.

    Attributes:
        labels: The text of each token, with its value if that is beyond the scale.
        values: The attribution of each token.
        scaled: The tokens' shares of the scale, clipped to [-1, 1].
        off_scale: Which tokens are left out of the scale.
    """

    labels: list[str]
    values: list[float]
    scaled: ScaledMap
    off_scale: list[bool]


def scale_tokens(
    tokens: Sequence[str],
    attribution: Tensor,
    *,
    off_scale: OffScale = None,
    sign: Sign = "auto",
    scale: float | None = None,
) -> ScaledTokens:
    """Finds the colour scale of a text, and the share of each token on it.

    Args:
        tokens: The N tokens as strings.
        attribution: ``(N,)`` or ``(N, D)``, see `token_values`.
        off_scale: Which tokens don't set the scale.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: the strongest that is on the scale.

    Returns:
        The scaled tokens.

    Raises:
        ValueError: If tokens, attribution and `off_scale` don't fit, or a value is not finite.

    Example:
        >>> tokens, values = ["[CLS]", "fine", "film"], torch.tensor([0.9, 0.02, 0.01])
        >>> found = scale_tokens(tokens, values, off_scale=[True, False, False])
        >>> found.labels, found.scaled.values
        (['[CLS] (0.9)', 'fine', 'film'], tensor([1.0000, 1.0000, 0.5000]))
    """
    values = token_values(tokens, attribution).cpu()
    off = as_mask(off_scale, len(tokens))
    scaled = scale_without(values, off, sign=sign, scale=scale)
    beyond = off & (values.abs() > scaled.scale)
    labels = [
        f"{visible(token)} ({format_value(value)})" if too_large else visible(token)
        for token, value, too_large in zip(tokens, values.tolist(), beyond.tolist(), strict=True)
    ]
    return ScaledTokens(labels, values.tolist(), scaled, off.tolist())


def scale_without(
    values: Tensor, off_scale: Tensor, *, sign: Sign = "auto", scale: float | None = None
) -> ScaledMap:
    """Scales all values by the largest of some of them.

    Args:
        values: Finite values of any shape.
        off_scale: Which values don't set the scale, of the same shape.
        sign: The part to show, see `scale_map`.
        scale: The attribution that gets the strongest colour, if it is fixed.

    Returns:
        The scaled values, clipped.
    """
    # If no value sets the scale, it is the scale of a zero.
    setting = torch.cat([values[~off_scale], values.new_zeros(1)])
    found = scale_map(setting, sign=sign, scale=scale, quantile=1.0)
    shown = values.abs() if sign == "absolute" else values
    shown = shown.clamp(min=0) if sign == "positive" else shown
    shares = (shown / found.scale).clamp(-1, 1) if found.scale else shown.sign()
    return ScaledMap(shares, found.scale, found.signed)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the ids of a tokenizer's special tokens: start, end, separation, padding, mask.

    The token for unknown words is not among them, as it stands for a word of the text.

    Args:
        tokenizer: A tokenizer of Transformers.

    Returns:
        The tokenizer's ``all_special_ids``; empty if it has no such attribute.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    ids: Collection[int] = getattr(tokenizer, "all_special_ids", ())
    # A tokenizer may have one token for all purposes, like GPT-2's.
    purposes = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id")
    others = {getattr(tokenizer, purpose, None) for purpose in purposes}
    return frozenset(each for each in ids if each != unknown or each in others)


def as_mask(off_scale: OffScale, count: int) -> Tensor:
    """Returns a boolean mask of the tokens that are left out of the scale."""
    if off_scale is None:
        return torch.zeros(count, dtype=torch.bool)
    mask = torch.as_tensor(off_scale).cpu()
    if mask.shape != (count,):
        raise ValueError(
            f"off_scale must have a boolean for each of the {count} tokens, got the shape "
            f"{tuple(mask.shape)}."
        )
    return mask.bool()
