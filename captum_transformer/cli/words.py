"""Tokens put together to what a reader reads: words, sentences, lines, paragraphs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.cli.explanation import Class, TextExplanation
from captum_transformer.groups import label_tokens, spans_of, sum_by_group
from captum_transformer.visualization import merge_words
from captum_transformer.visualization.token_scale import special_ids

Unit = Literal["token", "word", "sentence", "line", "paragraph"]
_REST = "other tokens"
_BETWEEN = "→"


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


def joined(
    name: str,
    classes: Sequence[Class],
    of_tokens: Mapping[str, Sequence[Tensor]],
    parts: Sequence[Merge],
) -> TextExplanation:
    """The explanation of texts that stand one behind the other, word by word.

    Between two texts there is an arrow, which is no word and has no relevance.

    Args:
        name: What it is called.
        classes: What is explained.
        of_tokens: By method, for each class the relevance of all tokens.
        parts: How the tokens of each text are put together.
    """
    counts = [len(part.tokens) for part in parts]

    def of_words(row: Tensor) -> Tensor:
        rows = zip(parts, torch.split(row, counts), strict=True)
        first, *others = [part.sums(values) for part, values in rows]
        return torch.cat([first, *(F.pad(sums, (1, 0)) for sums in others)])

    by_words = {method: list(map(of_words, rows)) for method, rows in of_tokens.items()}
    words, off_scale = list(parts[0].words), list(parts[0].off_scale)
    for part in parts[1:]:
        words += [_BETWEEN, *part.words]
        off_scale += [False, *part.off_scale]
    tokens = [token for part in parts for token in part.tokens]
    return TextExplanation(name, classes, by_words, words, tokens, of_tokens, off_scale)
