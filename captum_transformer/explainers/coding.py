"""Tokenized texts, with the position of each token in the text."""

from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

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
        added: whether each was added by the tokenizer to what was given.
        words: the number of the word in its text that it is a piece of; None for special tokens.
        tokenizer: what has coded it.
        ids: the tokens' ids.
    """

    texts: list[str]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    of_text: list[int | None]
    added: list[bool]
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
                f"{piece!r} must be in the text exactly once, but occurs {whole.count(piece)} "
                "times."
            )
        end = start + len(piece)
        found = [
            number
            for number, (first, last) in enumerate(self.offsets)
            if self.of_text[number] == text and first < end and last > start
        ]
        if not found:
            raise InvalidTargetError(f"No token corresponds to {piece!r}.")
        return found

    def tokens_of_texts(self) -> list[int]:
        """The tokens that the texts are made of, special ones that stand in them included.

        Raises:
            InvalidInputError: if there are none.
        """
        found = [number for number, added in enumerate(self.added) if not added]
        if not found:
            raise InvalidInputError(f"The tokenizer makes no tokens of {self.texts[0]!r}.")
        return found

    def begins_word(self, token: int) -> bool:
        """Whether a token is the first of a word: the tokenizer says so, or a space is before it.

        Tokenizers that cut whole texts, as Llama's, tell no words apart.
        """
        if self.words[token] != self.words[token - 1]:
            return True
        text = self.texts[self.of_text[token] or 0]
        added = text[self.offsets[token - 1][1] : self.offsets[token][1]]
        return added != added.lstrip()


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
            f"Expected a non-empty text, or a tuple of two; got {text!r}. Pass several texts as a "
            "list."
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
    added = [part is None for part in found.sequence_ids(0)]
    places = [(int(start), int(end)) for start, end in offsets.tolist()]
    words = found.word_ids(0)
    return Coded(texts, found.tokens(), places, of_text, added, words, tokenizer, ids), tensors


def longest_text(model: Any, tokenizer: Any) -> int:
    """The most tokens that a model takes, as far as its tokenizer and its configuration say.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    known = [int(tokenizer.model_max_length)]
    if isinstance(positions, int) and positions > 0:
        known += [positions, *_counted_behind_padding(model, positions)]
    return min(known)


def _counted_behind_padding(model: Any, positions: int) -> list[int]:
    """How many positions are left where an embedding counts them from its padding on."""
    words = getattr(model, "get_input_embeddings", lambda: None)()
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [
        positions - module.padding_idx - 1
        for module in modules
        if isinstance(module, nn.Embedding) and module is not words
        if module.num_embeddings == positions and module.padding_idx is not None
    ]


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses a tokenizer by which words are not found.

    Args:
        tokenizer: a tokenizer of Transformers.

    Raises:
        InvalidInputError: if it is not a fast one, or knows no words.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidInputError(
            f"{type(tokenizer).__name__} doesn't provide the positions of tokens in the text, "
            "which are needed to combine them into words: load a fast tokenizer (`use_fast=True`)."
        )
    # Where a folder has no files of one, Transformers makes one of special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise InvalidInputError(
            f"The vocabulary of this {type(tokenizer).__name__} has only special tokens, so the "
            "model would see none of the text's words. Its files were not found: save the "
            "tokenizer that the model was trained with in the model's folder, "
            "`tokenizer.save_pretrained(folder)`."
        )
