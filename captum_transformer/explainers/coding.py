"""Texts as a tokenizer codes them, and where each token is in them."""

from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from captum_transformer.errors import InvalidInputError, InvalidTargetError

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts."""


class Coded(NamedTuple):
    """A text as a tokenizer has coded it.

    Attributes:
        texts: the text, or the two of a pair.
        tokens: the tokens as strings.
        offsets: where each is in its text.
        of_text: the number of its text; None for special tokens.
        words: the number of the word in its text that it is a piece of; None for special tokens.
        tokenizer: what has coded it.
        ids: the tokens' ids.
    """

    texts: list[str]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    of_text: list[int | None]
    words: list[int | None]
    tokenizer: Any
    ids: list[int]

    def tokens_of(self, piece: str, text: int) -> list[int]:
        """The tokens that a piece of a text is in.

        Raises:
            InvalidTargetError: if the piece is not there exactly once.
        """
        whole = self.texts[text]
        start = whole.find(piece)
        if not piece or start < 0 or whole.find(piece, start + 1) >= 0:
            raise InvalidTargetError(
                f"{piece!r} must be in the text exactly once, and is there {whole.count(piece)} "
                "times."
            )
        end = start + len(piece)
        found = [
            number
            for number, (first, last) in enumerate(self.offsets)
            if self.of_text[number] == text and first < end and last > start
        ]
        if not found:
            raise InvalidTargetError(f"No token is made of {piece!r}.")
        return found


def code(text: Any, tokenizer: Any, longest: int) -> tuple[Coded, dict[str, Tensor]]:
    """Codes a text.

    Args:
        text: the text, or a pair.
        tokenizer: a fast tokenizer of Transformers.
        longest: the most tokens that the model takes.

    Returns:
        The coded text, and what the model gets, by name.

    Raises:
        InvalidInputError: if it is no text, or one that is empty or too long.
    """
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, tuple) else []
    if len(texts) not in (1, 2) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise InvalidInputError(
            f"A text is explained, or a tuple of two, none of them empty; got {text!r}. Several "
            "texts are given as a list."
        )
    found = tokenizer(
        *texts,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
        verbose=False,
    )
    tensors = dict(found)
    (offsets,), (special,) = tensors.pop("offset_mapping"), tensors.pop("special_tokens_mask")
    ids = tensors["input_ids"][0].tolist()
    if len(ids) > longest:
        raise InvalidInputError(
            f"The text has {len(ids):,} tokens, and the model takes {longest:,}: shorten it."
        )
    of_text = [
        None if is_special else part
        for part, is_special in zip(found.sequence_ids(0), special.tolist(), strict=True)
    ]
    places = [(int(start), int(end)) for start, end in offsets.tolist()]
    words = found.word_ids(0)
    return Coded(texts, found.tokens(), places, of_text, words, tokenizer, ids), tensors


def longest_text(model: Any, tokenizer: Any) -> int:
    """The most tokens that a model takes, as far as its tokenizer and its configuration say.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    known = [int(tokenizer.model_max_length)]
    if isinstance(positions, int) and positions > 0:
        known.append(positions)
    return min(known)
