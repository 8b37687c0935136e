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
"""The separator of two texts, which is not a word and has no relevance."""

_REST = "other tokens"


class Merge:
    """Merges the tokens of one text into units such as words.

    Args:
        tokenizer: The model's tokenizer.
        ids: The tokens' ids.
        tokens: The tokens as strings.
        offsets: The start and end of each token in the text; ``(0, 0)`` for special tokens.
        text: The text.
        unit: The unit to merge tokens into.
        special_in_scale: Let special tokens set the colour scale.
        added: Which tokens are special in addition to the tokenizer's special tokens.

    Attributes:
        tokens: The tokens as strings.
        words: The merged units.
        off_scale: Which units are left out when the colour scale is found, as special tokens.
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
        """Returns the relevance of the units, given that of the tokens."""
        return self._merged(values)[1]

    def _merged(self, values: Tensor) -> tuple[list[str], Tensor]:
        if self._unit == "token":
            return list(self.tokens), values
        if self._labels:
            names, sums, _ = sum_by_group(values, self._labels)
            return names, sums
        return merge_words(self.tokens, values, self._offsets, self._text)


class Words:
    """Merges the tokens of a text, or of a pair, into units such as words.

    Args:
        coded: the encoded text.
        unit: the unit to merge tokens into.
        special_in_scale: let special tokens set the colour scale.

    Attributes:
        labels: the units as strings.
        special: which units are special tokens.
    """

    def __init__(self, coded: Coded, unit: Unit, *, special_in_scale: bool = False) -> None:
        # Special tokens belong to the text that they follow.
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
        """Returns the relevance of each unit, given that of the tokens ``(tokens,)``."""
        return torch.cat([merge.sums(relevance[part]) for part, merge in self._parts])
