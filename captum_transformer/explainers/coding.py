"""Tokenized texts, with the position of each token in the text."""

from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from captum_transformer.errors import InvalidInputError, InvalidTargetError

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts."""


class Coded(NamedTuple):
    """A text as encoded by a tokenizer.

    Attributes:
        texts: the text, or the two texts of a pair.
        tokens: the tokens as strings.
        offsets: the start and end of each token in its text.
        of_text: the number of each token's text; None for special tokens.
        added: whether each token was added by the tokenizer to the given texts.
        words: the number of the word that each token is a piece of; None for special tokens.
        tokenizer: the tokenizer.
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
        """Returns the tokens that contain a piece of a text.

        Raises:
            InvalidTargetError: if the piece doesn't occur exactly once.
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
        """Returns the tokens of the texts, including special tokens that were written in them.

        Raises:
            InvalidInputError: if the texts have no tokens.
        """
        found = [number for number, added in enumerate(self.added) if not added]
        if not found:
            raise InvalidInputError(f"The tokenizer makes no tokens of {self.texts[0]!r}.")
        return found

    def begins_word(self, token: int) -> bool:
        """Returns whether a token begins a word, by the tokenizer's words or a space before it.

        Tokenizers without pre-tokenization, such as Llama's, don't distinguish words.
        """
        if self.words[token] != self.words[token - 1]:
            return True
        text = self.texts[self.of_text[token] or 0]
        added = text[self.offsets[token - 1][1] : self.offsets[token][1]]
        return added != added.lstrip()


def code(text: Any, tokenizer: Any, longest: int) -> tuple[Coded, dict[str, Tensor]]:
    """Encodes a text.

    Args:
        text: the text, or a pair.
        tokenizer: a fast tokenizer of Transformers.
        longest: the maximum number of tokens of the model.

    Returns:
        The encoded text, and the model's inputs by name.

    Raises:
        InvalidInputError: if it is not a text, is empty, or is too long.
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
    """Returns the maximum number of tokens of a model, by its tokenizer and its configuration.

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
    """Returns the numbers of positions in embeddings that count them from their padding on."""
    words = getattr(model, "get_input_embeddings", lambda: None)()
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [
        positions - module.padding_idx - 1
        for module in modules
        if isinstance(module, nn.Embedding) and module is not words
        if module.num_embeddings == positions and module.padding_idx is not None
    ]


def check_tokenizer(tokenizer: Any) -> None:
    """Raises an error for a tokenizer that can't be used to find words.

    Args:
        tokenizer: a tokenizer of Transformers.

    Raises:
        InvalidInputError: if it is not a fast tokenizer, or its vocabulary has no words.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidInputError(
            f"{type(tokenizer).__name__} doesn't provide the positions of tokens in the text, "
            "which are needed to combine them into words: load a fast tokenizer (`use_fast=True`)."
        )
    # For a folder without a tokenizer's files, Transformers creates one with only special tokens.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise InvalidInputError(
            f"The vocabulary of this {type(tokenizer).__name__} has only special tokens, so the "
            "model would see none of the text's words. Its files were not found: save the "
            "tokenizer that the model was trained with in the model's folder, "
            "`tokenizer.save_pretrained(folder)`."
        )
