"""The tasks of Transformers' text models, and the score that each task explains."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import torch
from torch import Tensor

from captum_transformer.errors import AmbiguousOutputError, InvalidInputError, InvalidTargetError
from captum_transformer.explainers.classes import ClassNames
from captum_transformer.explainers.coding import Coded
from captum_transformer.explainers.readout import (
    Activation,
    Readout,
    class_number,
    class_readout,
    class_scores,
    finite,
)

Task: TypeAlias = Literal["class", "words", "answer", "next word", "masked word", "similarity"]
"""What a model predicts for a text: its class, classes of its words, an answer in it, the next
word, the masked word, or its similarity to another text."""

_MAPPINGS: dict[Task, str] = {
    "class": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "words": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "answer": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "next word": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked word": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
}


class Question(NamedTuple):
    """The question about one text that is explained.

    Attributes:
        output: the model's output.
        coded: the encoded text.
        target: the target, in the form that the task defines.
        rather_than: the target that it is compared with, or None.
        names: the names of the classes.
        activation: how scores of classes are converted to probabilities.
    """

    output: Any
    coded: Coded
    target: Any
    rather_than: Any
    names: ClassNames
    activation: Activation | None


def task_of(model: Any) -> Task:
    """Returns the task of a model by Transformers' auto classes; the default is classification.

    Raises:
        InvalidInputError: if the class is listed under several tasks.
    """
    from transformers.models.auto import modeling_auto

    names = {kind.__name__ for kind in type(model).__mro__}
    found = [
        task
        for task, mapping in _MAPPINGS.items()
        if names & set(_flat(getattr(modeling_auto, mapping).values()))
    ]
    if len(found) > 1:
        raise InvalidInputError(
            f"{type(model).__name__} may be for several tasks: give one of {found} as `task`."
        )
    return found[0] if found else "class"


def check_task(task: Any) -> Task:
    """Returns a task if it exists.

    Raises:
        InvalidInputError: if there is no such task.
    """
    if task not in get_args(Task):
        raise InvalidInputError(f"`task` must be one of {list(get_args(Task))}, got {task!r}.")
    return cast(Task, task)


def readout_of(task: Task, question: Question) -> Readout:
    """Returns the score that answers a question.

    Raises:
        InvalidTargetError: if the target is invalid for the task, or isn't in the text.
        AmbiguousOutputError: if the output has no scores in the task's form.
    """
    return _READOUTS[task](question)


def _class(question: Question) -> Readout:
    output, _, target, other, names, activation = question
    known = names.of(class_scores(output).shape[1])
    return class_readout(output, target, known, activation, other)


def _words(question: Question) -> Readout:
    """Reads the classes of some words: the sum of the scores at each word's first token."""
    output, coded, target, other, known, _ = question
    piece, label = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
    if not isinstance(piece, str):
        raise InvalidTargetError(
            "The model classifies words. Choose one with `target='Paris'`, or `('Paris', "
            f"'B-LOC')` for a class that is not the predicted one; got {target!r}."
        )
    tokens = coded.tokens_of(piece, 0)
    first = [n for n in tokens if n == tokens[0] or coded.begins_word(n)]
    scores = _of_tokens(output, coded)[0]
    count = scores.shape[1]
    names = known.of(count)
    if label is None:
        numbers = scores[first].argmax(-1).tolist()
    else:
        numbers = [class_number(label, names, count)] * len(first)
    said = ", ".join(dict.fromkeys(names.get(n, f"class {n}") for n in numbers))
    label_of, rival = f"{piece}: {said}", None
    if other is not None:
        rival = class_number(other, names, count)
        label_of += f" rather than {names.get(rival, f'class {rival}')}"

    def read(output: Any) -> Tensor:
        scores = _of_tokens(output, coded)
        chosen = scores[:, first, numbers]
        return (chosen if rival is None else chosen - scores[:, first, rival]).sum(1)

    probability = None
    if len(first) == 1 and rival is None:
        probability = float(scores[first].softmax(-1)[0, numbers[0]])
    number = numbers[0] if len(first) == 1 else None
    return Readout(label_of, number, finite(read(output)), probability, read)


def _answer(question: Question) -> Readout:
    """Reads an answer in the second text: the scores of its start and its end."""
    output, coded, target, other, *_ = question
    _no_rival(other, "answer")
    if len(coded.texts) != 2:
        raise InvalidInputError(
            "The model is for question answering: pass a question and the text, `(question, text)`."
        )
    text = 1
    start, end = (scores[0] for scores in _start_and_end(output, coded))
    inside = torch.tensor([part == text for part in coded.of_text], device=start.device)
    of_start, of_end = (scores.masked_fill(~inside, -torch.inf) for scores in (start, end))
    if target is None:
        both = of_start[:, None] + of_end
        both = both.masked_fill(torch.ones_like(both, dtype=torch.bool).tril(-1), -torch.inf)
        first, last = divmod(int(both.argmax()), len(start))
    elif isinstance(target, str):
        tokens = coded.tokens_of(target, text)
        first, last = tokens[0], tokens[-1]
    else:
        raise InvalidTargetError(
            f"The target must be an answer as it stands in the text, or None for the predicted "
            f"one, got {target!r}."
        )
    said = coded.texts[text][coded.offsets[first][0] : coded.offsets[last][1]]

    def read(output: Any) -> Tensor:
        start, end = _start_and_end(output, coded)
        return start[:, first] + end[:, last]

    probability = float(of_start.softmax(0)[first] * of_end.softmax(0)[last])
    return Readout(said, None, finite(read(output)), probability, read)


def _next_word(question: Question) -> Readout:
    # Tokens that a tokenizer appends to a text, such as its end, are not completed.
    return _of_vocabulary(question, max(question.coded.tokens_of_texts()))


def _masked_word(question: Question) -> Readout:
    coded = question.coded
    if coded.tokenizer.mask_token is None:
        raise InvalidInputError(
            "The model predicts masked words, but its tokenizer has no `mask_token`: set it."
        )
    masked = [n for n, each in enumerate(coded.ids) if each == coded.tokenizer.mask_token_id]
    if len(masked) != 1:
        raise InvalidInputError(
            f"The text must have one {coded.tokenizer.mask_token}, it has {len(masked)}."
        )
    return _of_vocabulary(question, masked[0])


def _of_vocabulary(question: Question, place: int) -> Readout:
    """Reads the score of a token of the vocabulary at one of the text's tokens."""
    output, coded, target, other, *_ = question
    scores = _of_tokens(output, coded)[0, place]
    number = int(scores.argmax()) if target is None else _token(target, coded, len(scores))
    rival = None if other is None else _token(other, coded, len(scores))
    label = coded.tokenizer.decode([number])
    if rival is not None:
        label += f" rather than {coded.tokenizer.decode([rival])}"

    def read(output: Any) -> Tensor:
        scores = _of_tokens(output, coded)[:, place]
        return scores[:, number] if rival is None else scores[:, number] - scores[:, rival]

    probability = float(scores.softmax(0)[number]) if rival is None else None
    return Readout(label, number, finite(read(output)), probability, read)


def _token(target: Any, coded: Coded, count: int) -> int:
    if not isinstance(target, str):
        return class_number(target, {}, count)
    ids = coded.tokenizer(target, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InvalidTargetError(
            f"{target!r} is {len(ids)} tokens, and the score of one is explained. Give one, with "
            "the space before it if it begins a word; or explain a whole answer by "
            "`captum_transformer.chat.ChatExplainer`."
        )
    return int(ids[0])


def _of_tokens(output: Any, coded: Coded) -> Tensor:
    """Returns the scores of each token, ``(1, tokens, classes)``."""
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor) or scores.dim() != 3 or len(scores) != 1:
        raise _other_form("scores of shape (1, tokens, classes)", scores)
    if scores.shape[1] != len(coded.ids):
        raise _other_form(f"scores of each of {len(coded.ids)} tokens", scores)
    return scores


def _start_and_end(output: Any, coded: Coded) -> tuple[Tensor, Tensor]:
    both = tuple(getattr(output, name, None) for name in ("start_logits", "end_logits"))
    for scores in both:
        if not isinstance(scores, Tensor) or scores.shape != (1, len(coded.ids)):
            raise _other_form(f"start_logits and end_logits of {len(coded.ids)} tokens", scores)
    start, end = both
    return cast(Tensor, start), cast(Tensor, end)


def _other_form(expected: str, found: Any) -> AmbiguousOutputError:
    given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    return AmbiguousOutputError(
        f"For this task the model must return {expected}, got {given}. Pass the model's task as "
        "`task`."
    )


def _no_rival(other: Any, task: str) -> None:
    if other is not None:
        raise InvalidTargetError(f"`rather_than` has no meaning for the task {task!r}.")


def _flat(names: Any) -> list[str]:
    """Flattens the names of classes, since some models have several classes for a task."""
    return [name for each in names for name in ([each] if isinstance(each, str) else each)]


_READOUTS: dict[Task, Callable[[Question], Readout]] = {
    "class": _class,
    "words": _words,
    "answer": _answer,
    "next word": _next_word,
    "masked word": _masked_word,
}
