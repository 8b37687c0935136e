"""Converts explanations of texts to words, for the command line."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.cli.explanation import Class, TextExplanation
from captum_transformer.explainers.words import BETWEEN, Merge


def joined(
    name: str,
    classes: Sequence[Class],
    of_tokens: Mapping[str, Sequence[Tensor]],
    parts: Sequence[Merge],
) -> TextExplanation:
    """Returns the explanation of consecutive texts, word by word.

    Between two texts there is an arrow, which is not a word and has no relevance.

    Args:
        name: The name of the input.
        classes: The explained classes.
        of_tokens: For each method and class, the relevance of all tokens.
        parts: Merges the tokens of each text.
    """
    counts = [len(part.tokens) for part in parts]

    def of_words(row: Tensor) -> Tensor:
        rows = zip(parts, torch.split(row, counts), strict=True)
        first, *others = [part.sums(values) for part, values in rows]
        return torch.cat([first, *(F.pad(sums, (1, 0)) for sums in others)])

    by_words = {method: list(map(of_words, rows)) for method, rows in of_tokens.items()}
    words, off_scale = list(parts[0].words), list(parts[0].off_scale)
    for part in parts[1:]:
        words += [BETWEEN, *part.words]
        off_scale += [False, *part.off_scale]
    tokens = [token for part in parts for token in part.tokens]
    return TextExplanation(name, classes, by_words, words, tokens, of_tokens, off_scale)
