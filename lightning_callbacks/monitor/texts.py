"""Converts the ids of texts to words or tokens to show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer.visualization import decode_with_offsets, merge_words
from captum_transformer.visualization.token_scale import special_ids
from captum_transformer.visualization.tokens import token_values

Decoded = tuple[list[str], list[tuple[int, int]], str]


class ShownText(NamedTuple):
    """The words or tokens of a text, their attribution, and which of them don't set the scale."""

    labels: Sequence[str]
    attribution: Tensor
    off_scale: Sequence[bool] | None


@dataclass(frozen=True)
class Texts:
    """Writes the ids of a text as words, as tokens, or as the ids themselves.

    Attributes:
        tokenizer: A tokenizer of Transformers, with which texts are shown as words and special
            tokens are left out of the scale; any other object counts as none.
        to_tokens: Converts the ids of a text to token strings instead.
        off_scale_ids: The ids that don't set the colour scale, or None for the tokenizer's
            special tokens.
    """

    tokenizer: Any = None
    to_tokens: Callable[[Tensor], Sequence[str]] | None = None
    off_scale_ids: Collection[int] | None = None
    _decoded: dict[tuple[int, ...], Decoded] = field(
        default_factory=dict, init=False, compare=False
    )

    def with_tokenizer(self, tokenizer: Any) -> Texts:
        """Returns a copy with a tokenizer, or the object itself if it has one."""
        return self if self.tokenizer is not None else replace(self, tokenizer=tokenizer)

    def shown(self, item: Tensor, attribution: Tensor) -> ShownText:
        """Returns the words or tokens that are shown of a text.

        Args:
            item: The ids ``(N,)``, or features ``(N, D)``, which are shown by their positions.
            attribution: ``(N,)``, or ``(N, D)``.

        Returns:
            The words, tokens, ids or positions, with their attribution.
        """
        if item.dim() != 1 or item.is_floating_point():
            return ShownText([str(position) for position in range(len(item))], attribution, None)
        off_ids = special_ids(self.tokenizer) if self.off_scale_ids is None else self.off_scale_ids
        off_scale = [token in off_ids for token in item.tolist()]
        if self.to_tokens is not None:
            return ShownText(self.to_tokens(item), attribution, off_scale)
        if not hasattr(self.tokenizer, "convert_ids_to_tokens"):
            return ShownText([str(i) for i in item.tolist()], attribution, off_scale)
        tokens, offsets, text = self._decode(item)
        values = token_values(tokens, attribution)
        words, merged = merge_words(tokens, values, offsets, text)
        _, special = merge_words(tokens, torch.tensor(off_scale).float(), offsets, text)
        return ShownText(words, merged, (special > 0).tolist())

    def _decode(self, ids: Tensor) -> Decoded:
        # Cached, since each text is drawn for all methods and classes, in every run.
        key = tuple(ids.tolist())
        if key not in self._decoded:
            self._decoded[key] = decode_with_offsets(self.tokenizer, key)
        return self._decoded[key]
