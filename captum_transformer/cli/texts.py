"""Explains texts."""

from typing import Any

import torch

from captum_transformer.cli.classifier import Classifier
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import TextExplanation
from captum_transformer.cli.models import HuggingFaceModel
from captum_transformer.cli.packages import package
from captum_transformer.cli.words import Merge, Unit, joined

MAX_TOKENS = 4096


def load_tokenizer(loaded: HuggingFaceModel) -> Any:
    """Loads the tokenizer of a model.

    Args:
        loaded: The model.

    Returns:
        A tokenizer of Transformers.

    Raises:
        UserError: If there is none.
    """
    transformers = package("transformers", "text")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            loaded.source, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"{loaded.source} has no tokenizer that can be loaded.") from error
    if not tokenizer.is_fast:
        raise UserError(f"{loaded.source} has no fast tokenizer, which words are found by.")
    return tokenizer


def explain_text(
    text: str,
    name: str,
    classifier: Classifier,
    tokenizer: Any,
    *,
    longest: int,
    unit: Unit = "word",
    special_in_scale: bool = False,
) -> TextExplanation:
    """Explains one text.

    Args:
        text: The text.
        name: What it is called.
        classifier: The model, the methods and the classes.
        tokenizer: The model's.
        longest: The most tokens that the model takes.
        unit: What relevance is added up by.
        special_in_scale: Let special tokens set the scale of the colours, as words do.

    Returns:
        The explanation.

    Raises:
        UserError: If the text is empty or too long, or the classes don't exist.
    """
    text = text.strip()
    if not text:
        raise UserError("the text is empty")
    coded = tokenizer(
        text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
    )
    ids, tokens = coded["input_ids"], coded.tokens()
    if len(ids) > longest:
        raise UserError(
            f"the text has {len(ids):,} tokens, the model takes {longest:,}: shorten it"
        )
    merge = Merge(
        tokenizer,
        ids,
        tokens,
        coded["offset_mapping"],
        text,
        unit,
        special_in_scale=special_in_scale,
        added=coded["special_tokens_mask"],
    )
    classes, of_tokens = classifier.explain(torch.tensor([ids]))
    return joined(name, classes, of_tokens, [merge])


def longest_text(loaded: HuggingFaceModel, tokenizer: Any) -> int:
    """The most tokens that a model takes.

    Args:
        loaded: The model.
        tokenizer: Its tokenizer.

    Returns:
        The smallest of what the tokenizer says, the positions that there are, and `MAX_TOKENS`.
    """
    positions = getattr(loaded.config, "max_position_embeddings", None)
    known = [int(tokenizer.model_max_length), MAX_TOKENS]
    if isinstance(positions, int) and positions > 0:
        known.append(positions)
    return min(known)
