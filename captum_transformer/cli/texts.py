"""Explains texts."""

from collections.abc import Sequence
from typing import Any

from captum_transformer.cli.classifier import Classifier
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Class, TextExplanation
from captum_transformer.cli.loaded import HuggingFaceModel
from captum_transformer.cli.packages import package
from captum_transformer.errors import InvalidInputError
from captum_transformer.explainers import TextExplainer
from captum_transformer.explainers.coding import Text, check_tokenizer, code
from captum_transformer.explainers.words import Unit, Words


def load_tokenizer(loaded: HuggingFaceModel) -> Any:
    """Loads the tokenizer of a model.

    Args:
        loaded: The model.

    Returns:
        A tokenizer of Transformers.

    Raises:
        UserError: If it can't be loaded, or can't be used.
    """
    transformers = package("transformers", "text")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            loaded.source, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"{loaded.source} has no tokenizer that can be loaded.") from error
    try:
        check_tokenizer(tokenizer)
    except InvalidInputError as error:
        raise UserError(f"{loaded.source}: {error}") from error
    return tokenizer


def explain_text(
    text: Text,
    name: str,
    classifier: Classifier,
    tokenizer: Any,
    *,
    longest: int,
    unit: Unit = "word",
    special_in_scale: bool = False,
) -> TextExplanation:
    """Explains the classes of one text.

    Args:
        text: The text, or a pair.
        name: The name of the text.
        classifier: The model, the methods and the classes.
        tokenizer: The model's tokenizer.
        longest: The maximum number of tokens of the model.
        unit: The unit that relevance is summed by.
        special_in_scale: Let special tokens set the colour scale, as words do.

    Returns:
        The explanation.

    Raises:
        InvalidInputError: If the text is empty or too long.
        UserError: If the classes don't exist.
    """
    coded, inputs = code(text, tokenizer, longest)
    classes, of_tokens = classifier.explain(inputs.pop("input_ids"), inputs)
    words = Words(coded, unit, special_in_scale=special_in_scale)
    by_words = {method: list(map(words.sums, rows)) for method, rows in of_tokens.items()}
    return TextExplanation(
        name, classes, by_words, words.labels, coded.tokens, of_tokens, words.special
    )


def explain_asked(
    text: Text,
    name: str,
    explainers: Sequence[TextExplainer],
    asked: Sequence[str],
    *,
    unit: Unit = "word",
    special_in_scale: bool = False,
) -> TextExplanation:
    """Explains answers, the classes of words, or masked words.

    Args:
        text: The text, or a pair.
        name: The name of the text.
        explainers: An explainer for each method.
        asked: The answers or words; without any, what the model predicts.
        unit: The unit that relevance is summed by.
        special_in_scale: Let special tokens set the colour scale, as words do.

    Returns:
        The explanation.
    """
    targets: Sequence[str | None] = asked or [None]
    found = [[explainer(text, target, unit=unit) for target in targets] for explainer in explainers]
    first = found[0]
    return TextExplanation(
        name,
        [Class(each.target, each.label, each.score, each.probability) for each in first],
        {row[0].method: [each.relevance for each in row] for row in found},
        first[0].words,
        first[0].tokens,
        {row[0].method: [each.of_tokens.cpu() for each in row] for row in found},
        [special and not special_in_scale for special in first[0].special],
    )
