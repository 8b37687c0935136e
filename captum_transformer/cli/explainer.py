"""Chooses how a model explains its inputs: as pictures, texts, answers or generated text."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from captum_transformer.cli.classifier import METHODS, Classifier, Kind
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Explanation, Given
from captum_transformer.cli.images import Changes, explain_image, names_of, preparation_of
from captum_transformer.cli.inputs import TEXT_SUFFIXES
from captum_transformer.cli.language import Asked, LanguageModel
from captum_transformer.cli.loaded import PIXELS, HuggingFaceModel, TimmModel
from captum_transformer.cli.progress import complain
from captum_transformer.cli.read import IMAGE_SUFFIXES, read_text
from captum_transformer.cli.texts import explain_asked, explain_text, load_tokenizer
from captum_transformer.errors import InvalidTargetError
from captum_transformer.explainers import TextExplainer
from captum_transformer.explainers.classes import find_class
from captum_transformer.explainers.coding import Text, longest_text
from captum_transformer.explainers.defaults import TEXT
from captum_transformer.explainers.tasks import Task, task_of

_MAX_TOKENS = 4096

Explain = Callable[[Given], Explanation]


def explainer_of(loaded: TimmModel | HuggingFaceModel, arguments: argparse.Namespace) -> Explain:
    """Returns the function that explains an input with a model.

    Args:
        loaded: The model.
        arguments: The arguments of the command.

    Raises:
        UserError: If the arguments don't fit the model.
    """
    names = names_of(loaded)
    if arguments.labels:
        names = _read_labels(arguments.labels, loaded.classes)
    asked = _asked(arguments)
    if isinstance(loaded, HuggingFaceModel) and loaded.reads == "input_ids":
        tokenizer = load_tokenizer(loaded)
        options = {
            "unit": "token" if arguments.tokens else arguments.by,
            "special_in_scale": arguments.special_in_scale,
        }
        longest = min(longest_text(loaded.model, tokenizer), _MAX_TOKENS)
        if loaded.writes:
            return _language(loaded, tokenizer, asked, arguments, {"longest": longest, **options})
        _refuse_asked(loaded, asked)
        if (task := task_of(loaded.model)) != "class":
            return _of_task(loaded, tokenizer, task, names, arguments, options)
        classifier = _classifier(loaded, names, "text", arguments)
        return lambda given: explain_text(
            _words(given, arguments.pair),
            given.name,
            classifier,
            tokenizer,
            longest=longest,
            **options,
        )
    if loaded.reads != PIXELS:
        raise UserError(
            f"{type(loaded.model).__name__} reads {loaded.reads}; here, only images and texts "
            "can be explained. Use the Python API, see docs/models.md."
        )
    _refuse_asked(loaded, asked)
    classifier = _classifier(loaded, names, "image", arguments)
    preparation = preparation_of(
        loaded, Changes(arguments.mean, arguments.std, arguments.size, arguments.crop)
    )
    complain(f"pictures: {preparation.said}")

    def explain(given: Given) -> Explanation:
        if given.text is not None or given.path.suffix.lower() in TEXT_SUFFIXES:
            raise UserError("it is a text, and the model reads images")
        return explain_image(
            given.path, given.name, classifier, preparation, pixels=arguments.pixels
        )

    return explain


def _classifier(
    loaded: TimmModel | HuggingFaceModel,
    names: Mapping[int, str],
    kind: Kind,
    arguments: argparse.Namespace,
) -> Classifier:
    return Classifier(
        loaded.model,
        names,
        kind=kind,
        methods=arguments.method or (),
        classes=[_class(asked, names, loaded.classes) for asked in arguments.classes],
        top=arguments.top or 1,
        captured=arguments.captured,
    )


def _class(asked: str, names: Mapping[int, str], count: int | None) -> int:
    try:
        return find_class(asked, names, count)
    except InvalidTargetError as error:
        labels = "" if names else " (a file of names: --labels)"
        raise UserError(f"{error}{labels}") from error


def _asked(arguments: argparse.Namespace) -> Asked | None:
    """Returns the question to a language model, or None if there is none."""
    given = {
        "--rather-than": arguments.rather_than is not None,
        "--part": bool(arguments.part),
        "--each": arguments.each,
        "--hops": arguments.hops != 0,
        "--chat": arguments.chat,
    }
    more = [option for option, there in given.items() if there]
    if arguments.answer is None and not arguments.generate:
        if more:
            raise UserError(f"{more[0]} needs an answer: give --answer or --generate.")
        return None
    if arguments.answer is not None and arguments.generate:
        raise UserError("Give --answer or --generate, not both: what is to be explained?")
    chosen = [option for option in more if option in ("--rather-than", "--part", "--each")]
    if len(chosen) > 1:
        raise UserError(f"{chosen[0]} and {chosen[1]} each say what is explained: give one.")
    return Asked(
        arguments.answer,
        arguments.generate,
        arguments.rather_than,
        arguments.part,
        arguments.each,
        arguments.hops,
        arguments.chat,
    )


def _refuse_asked(loaded: TimmModel | HuggingFaceModel, asked: Asked | None) -> None:
    if asked is not None:
        raise UserError(
            f"{type(loaded.model).__name__} is not a language model, so --answer and --generate "
            "don't apply."
        )


def _language(
    loaded: HuggingFaceModel,
    tokenizer: object,
    asked: Asked | None,
    arguments: argparse.Namespace,
    options: Mapping[str, Any],
) -> Explain:
    if asked is None:
        raise UserError(
            f"{type(loaded.model).__name__} is a language model: give its answer with --answer "
            "TEXT, or generate one with --generate 20."
        )
    if arguments.classes or arguments.top or arguments.labels:
        raise UserError("A language model has no classes: omit --class, --top and --labels.")
    model = LanguageModel(loaded.model, tokenizer, asked, methods=arguments.method or (), **options)
    return lambda given: model.explain(_prompt(given), given.name)


def _of_task(
    loaded: HuggingFaceModel,
    tokenizer: object,
    task: Task,
    names: Mapping[int, str],
    arguments: argparse.Namespace,
    options: Mapping[str, Any],
) -> Explain:
    if arguments.top:
        raise UserError("--top only applies to classes of a whole text or picture.")
    if task == "answer" and arguments.pair is None:
        raise UserError(
            "The model is for question answering: give the question as --text and the text as "
            "--pair."
        )
    if task == "words" and not arguments.classes:
        raise UserError(
            "The model is for token classification: choose a word, for example with --class Paris."
        )
    methods = [METHODS[name] for name in arguments.method or [TEXT.method.__name__]]
    explainers = [
        TextExplainer(loaded.model, tokenizer, method, names=names, task=task) for method in methods
    ]
    return lambda given: explain_asked(
        _words(given, arguments.pair), given.name, explainers, arguments.classes, **options
    )


def _words(given: Given, pair: str | None) -> Text:
    text = _prompt(given).strip()
    if not text:
        raise UserError("the text is empty")
    return text if pair is None else (text, pair)


def _prompt(given: Given) -> str:
    if given.text is None and given.path.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError("it is an image, and the model reads texts")
    # The newline at the end of a file isn't part of the text.
    return read_text(given.path).rstrip("\r\n") if given.text is None else given.text


def _read_labels(path: str, classes: int | None) -> dict[int, str]:
    """Returns the names of classes in a file that has one on each line."""
    try:
        lines = read_text(Path(path)).rstrip().splitlines()
    except UserError as error:
        raise UserError(f"{path}: {error}.") from error
    if classes is not None and len(lines) != classes:
        raise UserError(
            f"{path} has {len(lines)} lines, and the model {classes} classes: write one name on "
            "each line, and an empty line for a class without a name."
        )
    return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
