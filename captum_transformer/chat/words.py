"""Combines tokens into the words of a conversation."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer.attr.spans import weights_of
from captum_transformer.errors import InvalidInputError
from captum_transformer.visualization.token_scale import special_ids
from captum_transformer.visualization.words import decode_with_offsets, merge_words


class Words(NamedTuple):
    """The words of a text, and the number of tokens in each.

    Attributes:
        labels: the words as strings.
        counts: the number of consecutive tokens in each word.
    """

    labels: list[str]
    counts: list[int]

    def summed(self, relevance: Tensor, dim: int) -> Tensor:
        """Sums the relevance of the tokens of each word."""
        parts = torch.split(relevance, self.counts, dim)
        return torch.stack([part.sum(dim) for part in parts], dim)

    def of_tokens(self, weights: Tensor) -> Tensor:
        """Returns the weight of each token, which is its word's, ``(spans, tokens)``."""
        return weights.repeat_interleave(torch.tensor(self.counts), 1)

    def weights_of(self, spans: Any) -> Tensor:
        """Returns the weight of each word in each span, ``(spans, words)``.

        Raises:
            InvalidInputError: if a span is invalid or is not in this text.
        """
        if isinstance(spans, Sequence) and not isinstance(spans, str):
            spans = [self._place(each) if isinstance(each, str) else each for each in spans]
        return weights_of(spans, 1, len(self.labels), 0, "words of the answer")[0]

    def _place(self, phrase: str) -> tuple[int, int]:
        """Returns the range of a phrase's words in the text, ``(start, end)``."""
        count = len(self.labels)
        runs = [(i, j) for i in range(count) for j in range(i + 1, count + 1)]
        found = [(i, j) for i, j in runs if self.labels[i:j] == phrase.split()]
        if len(found) != 1:
            raise InvalidInputError(
                f"{phrase!r} is {len(found)} times among the answer's words, {self.labels}. Give "
                "whole words as written in the answer, or the index of the first word and that "
                "after the last: `spans=[(0, 2)]`."
            )
        return found[0]


def words_of(tokenizer: Any, ids: Tensor) -> Words:
    """Returns the words of ids; repeated special tokens, such as an image's, are one word."""
    tokens, offsets, text = decode_with_offsets(tokenizer, ids)
    labels, sizes = merge_words(tokens, torch.ones(len(tokens)), offsets, text)
    counts = [int(size) for size in sizes]
    starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
    special = special_ids(tokenizer)
    of_word = [int(ids[start]) for start in starts[:-1]]
    first = [
        number
        for number in range(len(labels))
        if not number or of_word[number] not in special or of_word[number] != of_word[number - 1]
    ]
    runs = list(pairwise([*first, len(labels)]))
    return Words(
        [
            f"{labels[start]} × {end - start}" if end - start > 1 else labels[start]
            for start, end in runs
        ],
        [starts[end] - starts[start] for start, end in runs],
    )
