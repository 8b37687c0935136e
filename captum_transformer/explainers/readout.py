"""The part of a model's output that is explained: a class, and how its score is read."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from captum_transformer.calling.target import main_output
from captum_transformer.errors import (
    AmbiguousOutputError,
    ExplanationError,
    InvalidInputError,
    InvalidTargetError,
)
from captum_transformer.explainers.classes import check_class, find_class, label_of

Activation: TypeAlias = Literal["softmax", "sigmoid"]
"""How a model's scores are converted to probabilities."""


class Readout(NamedTuple):
    """A score that a model gives to one sample.

    Attributes:
        label: the class or token that the score is for, as written above a picture.
        number: the number of the class or token; None if there is no single one.
        score: the score.
        probability: the score's probability, or None if it is unknown how to compute it.
        read: a function from the model's output to the score of the one sample, ``(1,)``.
    """

    label: str
    number: int | None
    score: float
    probability: float | None
    read: Callable[[Any], Tensor]


def with_targets(inputs: list[Any], target: Any, called: str) -> list[tuple[Any, Any]]:
    """Returns each input with its target; a single target is used for all inputs.

    Raises:
        InvalidInputError: if the number of targets differs from the number of inputs.
    """
    targets = target if isinstance(target, list) else [target] * len(inputs)
    if len(targets) != len(inputs):
        raise InvalidInputError(
            f"There are {len(inputs)} {called} and {len(targets)} targets: give one target for "
            "all, or one for each."
        )
    return list(zip(inputs, targets, strict=True))


def activation_of(model: Any) -> Activation | None:
    """Returns how scores are converted to probabilities, or None if the model doesn't define it."""
    config = getattr(model, "config", None)
    kinds: dict[Any, Activation] = {
        # The default of Transformers' classifiers.
        None: "softmax",
        "single_label_classification": "softmax",
        "multi_label_classification": "sigmoid",
    }
    if config is None or not hasattr(config, "problem_type"):
        return None
    return kinds.get(config.problem_type)


def class_scores(output: Any) -> Tensor:
    """Returns the scores of the classes of one sample, ``(1, classes)``.

    Raises:
        AmbiguousOutputError: if the output has no such tensor.
    """
    scores = main_output(output)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != 1:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise AmbiguousOutputError(
            f"The model must return one score for each class, of shape (1, classes), got {given}. "
            "Pass a function that returns these, such as `lambda *inputs: model(*inputs)[0]`."
        )
    return scores


def class_readout(
    output: Any,
    target: Any,
    names: Mapping[int, str],
    activation: Activation | None,
    rather_than: Any = None,
) -> Readout:
    """Returns the readout of a class.

    Args:
        output: the model's output for one sample.
        target: the number or name of the class; None for the one with the highest score.
        names: the known names of classes.
        activation: how scores are converted to probabilities.
        rather_than: another class: the difference of the two scores is explained.

    Raises:
        InvalidTargetError: if there is no such class.
        AmbiguousOutputError: if the output has no scores of classes.
    """
    scores = class_scores(output)[0]
    number = int(scores.argmax()) if target is None else class_number(target, names, len(scores))
    probabilities = None
    if activation == "sigmoid":
        probabilities = scores.sigmoid()
    # A single score is a regression's output, or the logit of one of two classes.
    elif activation == "softmax" and len(scores) > 1:
        probabilities = scores.softmax(0)
    label, score = label_of(number, names), finite(scores[number])
    probability = None if probabilities is None else float(probabilities[number])
    if rather_than is None:
        return Readout(
            label, number, score, probability, lambda output: class_scores(output)[:, number]
        )
    other = class_number(rather_than, names, len(scores))
    if other == number:
        raise InvalidTargetError(f"{label} is compared with itself: give another class.")

    def difference(output: Any) -> Tensor:
        scores = class_scores(output)
        return scores[:, number] - scores[:, other]

    return Readout(
        f"{label} rather than {label_of(other, names)}",
        number,
        score - finite(scores[other]),
        None,
        difference,
    )


def class_number(target: Any, names: Mapping[int, str], count: int) -> int:
    """Returns the number of a class that is given by number or name.

    Raises:
        InvalidTargetError: if there is no such class.
    """
    if isinstance(target, str):
        return find_class(target, names, count)
    try:
        number = int(target)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number != target or isinstance(target, (bool, float)):
        raise InvalidTargetError(
            f"A target must be the number or the name of a class, or None for the predicted one, "
            f"got {target!r}."
        )
    return check_class(number, count)


def finite(score: Tensor) -> float:
    """Converts a score to a number.

    Raises:
        ExplanationError: if it is NaN or infinite, so that it can't be explained.
    """
    value = float(score)
    if not math.isfinite(value):
        raise ExplanationError(
            f"The model's score is {value}. Check for weights that are not finite, an overflow in "
            "half precision, or a division by zero in the model or in the preprocessing."
        )
    return value
