"""Combines tokens into words, sentences, lines or paragraphs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from captum_transformer.explainers.coding import Coded
from captum_transformer.groups import label_tokens, spans_of, sum_by_group
from captum_transformer.visualization import merge_words
from captum_transformer.visualization.token_scale import special_ids

Unit = Literal["token", "word", "sentence", "line", "paragraph"]
BETWEEN = "→"
"""What stands between two texts; it is no word and has no relevance."""

_REST = "other tokens"


class Merge:
    """How the tokens of one text are put together.

    Args:
        tokenizer: The model's.
        ids: The tokens' ids.
        tokens: The tokens as strings.
        offsets: Where each is in the text; ``(0, 0)`` for special ones.
        text: The text.
        unit: What they are put together to.
        special_in_scale: Let special tokens set the scale of the colours.
        added: Which tokens are special beside those that the tokenizer names.

    Attributes:
        tokens: The tokens as strings.
        words: What they are put together to.
        off_scale: Which of these are special tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        ids: Sequence[int],
        tokens: Sequence[str],
        offsets: Any,
        text: str,
        unit: Unit,
        *,
        special_in_scale: bool = False,
        added: Sequence[int] = (),
    ) -> None:
        self.tokens = tokens
        self._offsets, self._text, self._unit = offsets, text, unit
        self._labels: list[str] = []
        if unit != "token" and unit != "word":
            self._labels = label_tokens(offsets, spans_of(text, unit), rest=_REST)
        known = special_ids(tokenizer)
        special = torch.tensor([float(each in known) for each in ids])
        if len(added):
            special = special.maximum(torch.tensor(added, dtype=torch.float))
        self.words, off = self._merged(special)
        self.off_scale = [not special_in_scale and each > 0 for each in off.tolist()]

    def sums(self, values: Tensor) -> Tensor:
        """The relevance of the words."""
        return self._merged(values)[1]

    def _merged(self, values: Tensor) -> tuple[list[str], Tensor]:
        if self._unit == "token":
            return list(self.tokens), values
        if self._labels:
            names, sums, _ = sum_by_group(values, self._labels)
            return names, sums
        return merge_words(self.tokens, values, self._offsets, self._text)


class Words:
    """What the tokens of a text, or of a pair, are put together to.

    Args:
        coded: the text.
        unit: what they are put together to.
        special_in_scale: let special tokens set the scale of the colours.

    Attributes:
        labels: what is written of each.
        special: which of them are special tokens.
    """

    def __init__(self, coded: Coded, unit: Unit, *, special_in_scale: bool = False) -> None:
        # Special tokens go with the text that they follow.
        second = next((n for n, part in enumerate(coded.of_text) if part == 1), len(coded.ids))
        ends = [second, len(coded.ids)][-len(coded.texts) :]
        self._parts = [
            (
                slice(start, end),
                Merge(
                    coded.tokenizer,
                    coded.ids[start:end],
                    coded.tokens[start:end],
                    coded.offsets[start:end],
                    text,
                    unit,
                    special_in_scale=special_in_scale,
                    added=[each is None for each in coded.of_text[start:end]],
                ),
            )
            for text, start, end in zip(coded.texts, [0, *ends], ends, strict=False)
        ]
        self.labels = [word for _, part in self._parts for word in part.words]
        self.special = [each for _, part in self._parts for each in part.off_scale]

    def sums(self, relevance: Tensor) -> Tensor:
        """The relevance of each, of that of the tokens ``(tokens,)``."""
        return torch.cat([merge.sums(relevance[part]) for part, merge in self._parts])
