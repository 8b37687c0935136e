"""Explains the similarity of two texts by pairs of their words."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer.attr.bilrp import BiLRP, PairRelevance
from captum_transformer.errors import InvalidInputError, InvalidTargetError
from captum_transformer.explainers.coding import code
from captum_transformer.explainers.explained_pair import ExplainedPair
from captum_transformer.explainers.readout import finite
from captum_transformer.explainers.words import Unit, Words


def cosine(embedding: Callable[..., Any]) -> BiLRP:
    """Explains the cosine of two embeddings.

    Args:
        embedding: a function that returns the embedding of a text.
    """
    return BiLRP(embedding, normalize=True)


def explained_pair(
    texts: Any,
    target: Any,
    rather_than: Any,
    method: BiLRP,
    tokenizer: Any,
    *,
    longest: int,
    device: torch.device,
    unit: Unit,
) -> ExplainedPair:
    """Explains how similar two texts are.

    Args:
        texts: a tuple of two.
        target: must be None, since there is only one score.
        rather_than: must be None.
        method: the method, which explains pairs of tokens.
        tokenizer: the tokenizer, which encodes each of the texts by itself.
        longest: the maximum number of tokens of the model.
        device: the device of the model.
        unit: the unit that relevance is summed by.

    Raises:
        InvalidInputError: if there are not two texts, or the method explains no pairs.
        InvalidTargetError: if a target is given.
    """
    if not (isinstance(texts, tuple) and len(texts) == 2):
        raise InvalidInputError(f"Similarity needs a tuple of two texts, got {texts!r}.")
    if target is not None or rather_than is not None:
        raise InvalidTargetError("Two texts have only one similarity: omit `target`.")
    if not isinstance(method, BiLRP):
        raise InvalidInputError(
            f"{type(method).__name__} explains single texts; `method` must make a `BiLRP`, for "
            "instance `lambda embedding: BiLRP(embedding, method=AttnLRP, normalize=True)`."
        )
    (one, first), (other, second) = (code(text, tokenizer, longest) for text in texts)
    inputs = [{name: t.to(device) for name, t in given.items()} for given in (first, second)]
    ids = [{"input_ids": given.pop("input_ids")} for given in inputs]
    found: PairRelevance = method.explain(
        *ids, additional_forward_kwargs=inputs[0], other_forward_kwargs=inputs[1]
    )
    score, of_tokens = finite(found.similarity[0]), found.relevance[0]
    words = Words(one, unit), Words(other, unit)
    return ExplainedPair(
        "similarity",
        None,
        score,
        None,
        False,  # noqa: FBT003 - there is nothing else that could be explained
        type(method).__name__,
        (words[0].labels, words[1].labels),
        _of_words(of_tokens.cpu(), words),
        (one.tokens, other.tokens),
        of_tokens,
        (words[0].special, words[1].special),
    )


def _of_words(of_tokens: Tensor, words: tuple[Words, Words]) -> Tensor:
    rows = torch.stack([words[0].sums(column) for column in of_tokens.unbind(1)], 1)
    return torch.stack([words[1].sums(row) for row in rows])
