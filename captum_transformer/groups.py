"""Relevance summed by groups: words, sentences, documents, turns of a chat, image segments."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from captum_transformer.errors import InvalidInputError
from captum_transformer.templates import mark, places_of

__all__ = ["Grouped", "label_tokens", "spans_of", "spans_of_chat", "sum_by_group"]

Unit = Literal["word", "sentence", "line", "paragraph"]
Span = tuple[int, int]

# A sentence ends with a mark, and closing quotes and brackets, before a space or the text's end;
# the marks of scripts without spaces end a sentence anywhere.
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’）]*|$)", re.DOTALL)
_UNITS: dict[str, re.Pattern[str]] = {
    "word": re.compile(r"\S+"),
    "sentence": _SENTENCE,
    "line": re.compile(r"[^\n]+"),
    "paragraph": re.compile(r".+?(?=\n[^\S\n]*\n|\Z)", re.DOTALL),
}


class Grouped(NamedTuple):
    """Relevance of groups.

    Attributes:
        names: the names of the groups, in the order of the sums.
        relevance: the sums of the groups, ``(..., groups)``.
        numbers: the index of each token's or pixel's group, so that ``relevance[..., numbers]``
            is the sum of the group for each token or pixel.
    """

    names: list[Any]
    relevance: Tensor
    numbers: Tensor


def sum_by_group(relevance: Tensor, groups: Sequence[Hashable] | Tensor) -> Grouped:
    """Sums the relevance of tokens, or pixels, by groups.

    Each belongs to one group, so the sum over groups equals the sum over tokens.

    Args:
        relevance: of tokens ``(..., tokens)``, or of pixels ``(..., height, width)``: a result of
            ``attribute``, ``attribute_tokens`` or ``attribute_generated``.
        groups: for each token the name of its group, any hashable object; or
            integers, as many as the tokens, or ``(height, width)`` for the segments of an image.

    Returns:
        The groups' names, in the order of names' first appearance or of integers, and their sums
        ``(..., groups)``.

    Raises:
        InvalidInputError: if there is not one group for each token or pixel.

    Example:
        >>> relevance = torch.tensor([[0.5, 0.25, -1.0, 2.0]])
        >>> found = sum_by_group(relevance, ["question", "question", "answer", "question"])
        >>> found.names, found.relevance
        (['question', 'answer'], tensor([[ 2.7500, -1.0000]]))
        >>> segments = torch.tensor([[0, 0], [3, 3]])
        >>> sum_by_group(torch.ones(1, 3, 2, 2), segments).relevance.shape
        torch.Size([1, 3, 2])
    """
    names, index = _numbered(groups)
    if not index.ndim or relevance.shape[-index.ndim :] != index.shape:
        raise InvalidInputError(
            f"There are groups of the shape {tuple(index.shape)} for relevance of the shape "
            f"{tuple(relevance.shape)}, whose last dimensions must be the same. One group is "
            "needed for each token, also for special ones, padding and, if they are included, "
            "generated ones; for each pixel of an image."
        )
    index = index.to(relevance.device)
    # In half precision, sums over many tokens would lose small terms.
    precise = relevance.to(torch.promote_types(relevance.dtype, torch.float32))
    flat = precise.reshape(*relevance.shape[: -index.ndim], -1)
    sums = flat.new_zeros(*flat.shape[:-1], len(names))
    return Grouped(names, sums.index_add(-1, index.flatten(), flat), index)


def label_tokens(
    offsets: Sequence[Sequence[int]] | Tensor,
    spans: Mapping[str, Span | Sequence[Span]],
    rest: str | None = None,
) -> list[str]:
    """Finds the part of the text that each token is in, for `sum_by_group`.

    Args:
        offsets: where each token begins and ends in the text, ``(N, 2)``, as a fast tokenizer
            returns it with ``return_offsets_mapping=True``, or
            :func:`~captum_transformer.visualization.decode_with_offsets`.
        spans: by name, where a part begins and ends in the text, or several such places: a
            document, a few-shot example, a turn (see `spans_of` and `spans_of_chat`). A token that
            is in two parts belongs to the one with more of it.
        rest: the name for tokens in no part: special tokens, a template's own words. None: all
            tokens must be in a part.

    Raises:
        InvalidInputError: if parts overlap or are invalid places, or a token is in no part and
            there is no `rest`.

    Example:
        >>> text = "Cats sleep. Dogs bark."
        >>> offsets = [(0, 0), (0, 4), (4, 10), (10, 11), (11, 16), (16, 21), (21, 22)]
        >>> label_tokens(offsets, {"cats": (0, 11), "dogs": (12, 22)}, rest="special")
        ['special', 'cats', 'cats', 'cats', 'dogs', 'dogs', 'dogs']
    """
    places = _places(spans)
    labels: list[str] = []
    for number, offset in enumerate(offsets):
        start, end = (int(place) for place in offset)
        shared = [(min(end, to) - max(start, at), name) for at, to, name in places]
        most, name = max(shared, key=lambda each: each[0], default=(0, ""))
        if most <= 0:
            if rest is None:
                raise InvalidInputError(
                    f"Token {number}, at the characters {start} to {end}, lies in none of the "
                    f"{len(spans)} parts: give what lies in none a name, as `rest`, or a part that "
                    "it belongs to. (Special tokens lie nowhere in the text.)"
                )
            name = rest
        labels.append(name)
    return labels


def spans_of(text: str, unit: Unit) -> dict[str, Span]:
    """Finds the places of the words, sentences, lines or paragraphs of a text.

    Sentences end with a full stop, a question or exclamation mark or an ellipsis before a space,
    also after abbreviations; for better results, pass your own places to `label_tokens`.

    Args:
        text: the text.
        unit: ``"word"``, ``"sentence"``, ``"line"`` or ``"paragraph"``.

    Returns:
        The places by the parts' own words; if several are identical, the second is followed by
        ``(2)``, and so on.

    Example:
        >>> spans_of("Cats sleep. Dogs bark!", "sentence")
        {'Cats sleep.': (0, 11), 'Dogs bark!': (12, 22)}
    """
    if unit not in _UNITS:
        raise InvalidInputError(f"`unit` must be one of {list(get_args(Unit))}, got {unit!r}.")
    found: dict[str, Span] = {}
    for match in _UNITS[unit].finditer(text):
        said = match[0].strip()
        if said:
            start = match.start() + match[0].index(said)
            found[_new(said, found)] = (start, start + len(said))
    return found


def spans_of_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[str, dict[str, list[Span]]]:
    """Applies the chat template, and finds the places of the turns in the text.

    Args:
        tokenizer: a tokenizer or processor of Transformers with a chat template.
        messages: the turns, each with ``"role"`` and ``"content"``; in a list of contents, only
            the texts count.
        **options: arguments of ``apply_chat_template``, such as ``add_generation_prompt=True``.

    Returns:
        The text, and the places of the turns by role and number, as in ``"user 1"``. Text that
        the template adds is in none of them.

    Raises:
        InvalidInputError: if the template leaves words out or changes them.

    Example:
        >>> class Tokenizer:
        ...     def apply_chat_template(self, messages, tokenize):
        ...         return "".join(f"<{each['role']}>{each['content']}" for each in messages)
        >>> messages = [{"role": "user", "content": "us?"}, {"role": "model", "content": "Yes."}]
        >>> spans_of_chat(Tokenizer(), messages)
        ('<user>us?<model>Yes.', {'user 1': [(6, 9)], 'model 1': [(16, 20)]})
    """
    said: list[tuple[str, str]] = []
    marked, counts = [], Counter[str]()
    for message in messages:
        role = str(message["role"])
        counts[role] += 1
        marked.append(
            {**message, "content": _marked(message["content"], f"{role} {counts[role]}", said)}
        )
    text, pattern = (
        tokenizer.apply_chat_template(each, tokenize=False, **options)
        for each in (list(messages), marked)
    )
    names, words = [name for name, _ in said], [words for _, words in said]
    places = places_of(text, pattern, words)
    # A template that leaves turns out, or repeats some, might leave out any words of theirs.
    if places is None or [number for number, _, _ in places] != list(range(len(said))):
        raise InvalidInputError(
            "The chat template does not write what is said in each turn as it is and once, so it "
            "is unknown where the turns are in its text. Pass the offsets of the text's parts to "
            "`label_tokens` yourself."
        )
    found: dict[str, list[Span]] = {}
    for number, start, end in places:
        if end > start:
            found.setdefault(names[number], []).append((start, end))
    return text, found


def _marked(content: Any, name: str, said: list[tuple[str, str]]) -> Any:
    """Replaces the texts of a content by marks, and appends the texts to ``said``."""
    if isinstance(content, str):
        said.append((name, content))
        return mark(len(said) - 1)
    return [
        {**part, "text": _marked(part["text"], name, said)} if "text" in part else part
        for part in content
    ]


def _new(name: str, known: Mapping[str, Any]) -> str:
    number, chosen = 1, name
    while chosen in known:
        number += 1
        chosen = f"{name} ({number})"
    return chosen


def _places(spans: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    """Returns the start, end and name of all places, sorted."""
    places = []
    for name, given in spans.items():
        several = [given] if given and isinstance(given[0], int) else given
        for span in several:
            start, end = span
            if not 0 <= start < end:
                raise InvalidInputError(f"The part {name!r} is at {span}, not a valid range.")
            places.append((start, end, name))
    places.sort()
    for (_, end, one), (start, _, other) in pairwise(places):
        if start < end:
            raise InvalidInputError(
                f"The parts {one!r} and {other!r} overlap at the characters {start} to {end}: a "
                f"token belongs to one group, so that the total stays the same."
            )
    return places


def _numbered(groups: Any) -> tuple[list[Any], Tensor]:
    if not isinstance(groups, Tensor) and hasattr(groups, "__array__"):
        groups = torch.as_tensor(groups)
    if isinstance(groups, Tensor):
        if groups.is_floating_point() or groups.is_complex():
            raise InvalidInputError(f"Groups must be integers or names, got {groups.dtype}.")
        if bool((groups < 0).any()):
            raise InvalidInputError(
                f"{int((groups < 0).sum())} of {groups.numel()} tokens or pixels are in no group "
                "(a negative number): put them into a group of their own."
            )
        ids, index = torch.unique(groups, return_inverse=True)
        return ids.tolist(), index
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise InvalidInputError(
            "`groups` must be a group for each token, as a list of names or a tensor of integers, "
            f"got a {type(groups).__name__}. `label_tokens` makes them of the places of parts."
        )
    numbers: dict[Any, int] = {}
    for place, name in enumerate(groups):
        if name is None:
            raise InvalidInputError(f"Token {place} is in no group: give it one, such as 'rest'.")
        numbers.setdefault(name, len(numbers))
    return list(numbers), torch.tensor([numbers[name] for name in groups], dtype=torch.long)
