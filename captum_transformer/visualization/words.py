"""Merges tokens into the words that they are pieces of."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from captum_transformer.visualization.token_scale import special_ids
from captum_transformer.visualization.tokens import token_values

# Words are letters and digits, with apostrophes and hyphens inside. Scripts without spaces (Thai,
# Lao, Khmer, Burmese, Han, Kana) have no such words: each of their characters is a unit, so their
# tokens are not merged. Any other visible character is a separate unit.
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"(?:(?![{_NO_SPACES}])\w)"
_UNIT = re.compile(rf"{_LETTER}+(?:['’\-]{_LETTER}+)*|\S")
_START, _END = itemgetter(0), itemgetter(1)


def merge_words(
    tokens: Sequence[str],
    attribution: Tensor,
    offsets: Sequence[Sequence[int]] | Tensor,
    text: str,
) -> tuple[list[str], Tensor]:
    """Sums the attributions of the tokens that a tokenizer has split words into.

    A word's attribution is the sum over its tokens, so the total doesn't change. Punctuation and
    special tokens keep their own. Words are written as in the text, with its case and without the
    tokenizer's marks (``##``, ``Ġ``, ``▁``).

    Args:
        tokens: The N tokens as strings, which are shown for special tokens such as ``[CLS]``.
        attribution: One value per token, ``(N,)``, or ``(N, D)``, whose features are summed.
        offsets: The start and end of each token in the text, ``(N, 2)``, as returned by a fast
            tokenizer with ``return_offsets_mapping=True``. Special tokens have ``(0, 0)``.
        text: The text itself.

    Returns:
        The W words and their attributions ``(W,)``.

    Raises:
        ValueError: If the tokens, the attribution, the offsets and the text don't fit.

    Example:
        >>> import torch
        >>> tokens = ["[CLS]", "an", "un", "##believ", "##able", "film", "!"]
        >>> offsets = [(0, 0), (0, 2), (3, 5), (5, 11), (11, 15), (16, 20), (20, 21)]
        >>> values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        >>> merge_words(tokens, values, offsets, "An unbelievable film!")
        (['[CLS]', 'An', 'unbelievable', 'film', '!'], tensor([0., 1., 9., 5., 6.]))
    """
    values = token_values(tokens, attribution)
    spans = [_span(offset, text) for offset in offsets]
    if len(spans) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens need as many offsets, got {len(spans)}.")
    _check_order(spans)
    every = [match.span() for match in _UNIT.finditer(text)]
    units = [_units(every, span) for span in spans]
    # A special token has no unit, so it shares none with its neighbours.
    first = [
        number
        for number in range(len(tokens))
        if number == 0
        or not (units[number] and units[number - 1])
        or units[number][0] != units[number - 1][-1]
    ]
    words, sums = [], []
    for start, end in pairwise([*first, len(tokens)]):
        written = text[spans[start][0] : spans[end - 1][1]]
        # A special token has no place in the text; a token of spaces has one, and is only spaces.
        words.append((written.strip() or written) if written else tokens[start])
        sums.append(values[start:end].sum())
    return words, torch.stack(sums)


def decode_with_offsets(
    tokenizer: Any, ids: Sequence[int] | Tensor
) -> tuple[list[str], list[tuple[int, int]], str]:
    """Decodes ids to a text, with the position of each token in it, as `merge_words` needs.

    A tokenizer only returns offsets for a text that it encodes. Here they come from decoding: the
    tokens up to each one are decoded, and a token's text is what it adds to the text before it.

    Args:
        tokenizer: A tokenizer of Transformers, fast or slow.
        ids: The ids of N tokens ``(N,)``.

    Returns:
        The tokens as strings, their offsets, ``(0, 0)`` for special tokens, and the text.

    Raises:
        ValueError: If a token changes the text before it, so that it has no place of its own.

    Example:
        >>> import torch
        >>> class Letters:
        ...     all_special_ids, eos_token_id = [0], 0
        ...
        ...     def convert_ids_to_tokens(self, ids):
        ...         return [" abcd"[each] if each else "<eos>" for each in ids]
        ...
        ...     def decode(self, ids, **kwargs):
        ...         return "".join(" abcd"[each] for each in ids)
        >>> decode_with_offsets(Letters(), torch.tensor([1, 3, 0]))
        (['a', 'c', '<eos>'], [(0, 1), (1, 2), (0, 0)], 'ac')
    """
    every = [int(each) for each in ids]
    special = special_ids(tokenizer)
    written = [each for each in every if each not in special]

    def decoded(count: int) -> str:
        text: str = tokenizer.decode(written[:count], clean_up_tokenization_spaces=False)
        return text

    text = decoded(len(written))
    # A part of a character is decoded to a replacement, so the result isn't a prefix of the text.
    ends = [_common(decoded(count), text) for count in range(len(written) + 1)]
    if ends != sorted(ends):
        raise ValueError(
            "Some tokens change the text before them, so they have no place in it. Show the tokens "
            "as they are, by to_tokens=tokenizer.convert_ids_to_tokens."
        )
    # All parts of a character get its place.
    places = iter(
        [
            (start, next((later for later in ends[number:] if later > start), start))
            for number, start in enumerate(ends[:-1])
        ]
    )
    offsets = [(0, 0) if each in special else next(places) for each in every]
    return list(tokenizer.convert_ids_to_tokens(every)), offsets, text


def _common(left: str, right: str) -> int:
    """Returns the length of the common prefix of two texts."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def _span(offset: Sequence[int] | Tensor, text: str) -> tuple[int, int]:
    start, end = (int(place) for place in offset)
    if not 0 <= start <= end <= len(text):
        raise ValueError(
            f"The offsets ({start}, {end}) lie outside a text of {len(text)} characters: they "
            "belong to another text, or to a normalised form of it."
        )
    return start, end


def _check_order(spans: Sequence[tuple[int, int]]) -> None:
    starts = [start for start, end in spans if start < end]
    if starts != sorted(starts):
        raise ValueError(
            "The offsets go back in the text, as those of a pair of texts do. Pass one text at a "
            "time, with the part of the tokens and the attribution that belongs to it."
        )


def _units(units: Sequence[tuple[int, int]], span: tuple[int, int]) -> range:
    """Returns the indices of the units that a token overlaps."""
    start, end = span
    return range(bisect_right(units, start, key=_END), bisect_left(units, end, key=_START))
