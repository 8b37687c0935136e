"""``captum-transformer explain``: why these classes, for images and texts."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from captum_transformer.cli.classes import find_class
from captum_transformer.cli.classifier import Classifier
from captum_transformer.cli.defaults import Kind
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Explanation, Given
from captum_transformer.cli.images import explain_image, names_of, preparation_of
from captum_transformer.cli.language import Asked, LanguageModel
from captum_transformer.cli.models import HuggingFaceModel, TimmModel, Wanted, load_model
from captum_transformer.cli.outputs import Outputs
from captum_transformer.cli.progress import complain, with_progress
from captum_transformer.cli.read import IMAGE_SUFFIXES, is_folder, read_text
from captum_transformer.cli.texts import explain_text, load_tokenizer, longest_text
from captum_transformer.visualization.tokens import visible

_TEXT_SUFFIX = ".txt"


Explain = Callable[[Given], Explanation]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        arguments: As the parser in `captum_transformer.cli.main` makes them.

    Returns:
        0, or 1 if some of the inputs couldn't be explained.

    Raises:
        UserError: If nothing could be explained at all.
    """
    given = _given(arguments.inputs, arguments.text)
    outputs = Outputs(arguments, given)
    explain = _explain(arguments)
    failed = 0
    for each in with_progress(given, len(given)):
        try:
            explanation = explain(each)
            outputs.add(each, explanation)
        # What is wrong with one input shall not lose the others.
        except (torch.OutOfMemoryError, MemoryError):
            failed += 1
            complain(f"error: {each.name}: out of memory; try --device cpu or a smaller input")
        except UserError as error:
            failed += 1
            complain(f"error: {each.name}: {error}")
        # The model's own errors and those of the methods, which say what to do.
        except (RuntimeError, AssertionError, ValueError, IndexError, OSError) as error:
            failed += 1
            complain(f"error: {each.name}: {type(error).__name__}: {error}")
    outputs.finish()
    if failed and len(given) > 1:
        complain(f"{failed} of {len(given)} inputs could not be explained")
    return int(failed > 0)


def _given(inputs: Sequence[str], texts: Sequence[str]) -> list[Given]:
    given = [
        Given(f"text {number}", Path(f"text-{number}"), text)
        for number, text in enumerate(texts, start=1)
    ]
    for name in inputs:
        path = Path(name)
        if not is_folder(path):
            given.append(Given(visible(name), path))
            continue
        known = IMAGE_SUFFIXES | {_TEXT_SUFFIX}
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in known)
        if not files:
            raise UserError(f"There are no images or texts in {name}.")
        given += [Given(visible(str(file)), file) for file in files]
    if not given:
        raise UserError(
            "There is nothing to explain: give image files, .txt files, --text or --prompt."
        )
    return given


def _explain(arguments: argparse.Namespace) -> Explain:
    """Loads the model, and says how an input is explained with it."""
    wanted = Wanted(
        arguments.model,
        arguments.architecture,
        arguments.image_size,
        arguments.random_weights,
        arguments.weights,
    )
    loaded = load_model(wanted)
    if arguments.random_weights:
        complain("warning: the weights are random, so the explanations mean nothing")
    names = _read_labels(arguments.labels) if arguments.labels else names_of(loaded)
    device = _device(arguments.device)
    try:
        loaded.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The model can't be moved to {device}: {error}") from error
    reads = getattr(loaded.model, "main_input_name", "pixel_values")
    asked = _asked(arguments)
    if isinstance(loaded, HuggingFaceModel) and reads == "input_ids":
        tokenizer = load_tokenizer(loaded)
        options = {
            "longest": longest_text(loaded, tokenizer),
            "unit": "token" if arguments.tokens else arguments.by,
            "special_in_scale": arguments.special_in_scale,
        }
        if loaded.writes:
            return _language(loaded, tokenizer, asked, arguments, options)
        _refuse_asked(loaded, asked)
        classifier = _classifier(loaded, names, "text", arguments)
        return partial(_text, classifier=classifier, tokenizer=tokenizer, options=options)
    if reads != "pixel_values":
        raise UserError(
            f"{type(loaded.model).__name__} reads {reads}; here, only images and texts can be "
            "explained. Do it in Python, see docs/models.md."
        )
    _refuse_asked(loaded, asked)
    classifier = _classifier(loaded, names, "image", arguments)
    preparation = preparation_of(loaded)

    def explain(given: Given) -> Explanation:
        if given.text is not None or given.path.suffix.lower() == _TEXT_SUFFIX:
            raise UserError("it is a text, and the model reads images")
        return explain_image(given.path, given.name, classifier, preparation)

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
        classes=[find_class(asked, names, loaded.classes) for asked in arguments.classes],
        top=arguments.top or 1,
    )


def _asked(arguments: argparse.Namespace) -> Asked | None:
    """What is asked of a language model; None if nothing is."""
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
            f"{type(loaded.model).__name__} is no language model: it gives no answers that "
            "--answer or --generate could mean."
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
            f"{type(loaded.model).__name__} is a language model: say what it answered, "
            "--answer TEXT, or have it answer, --generate 20."
        )
    if arguments.classes or arguments.top or arguments.labels:
        raise UserError("A language model has no classes: leave --class, --top and --labels out.")
    model = LanguageModel(loaded.model, tokenizer, asked, methods=arguments.method or (), **options)
    return lambda given: model.explain(_words(given), given.name)


def _words(given: Given) -> str:
    if given.text is None and given.path.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError("it is an image, and the model reads texts")
    # The end of a file's last line is no part of what it says.
    return read_text(given.path).rstrip("\r\n") if given.text is None else given.text


def _text(
    given: Given, classifier: Classifier, tokenizer: object, options: Mapping[str, Any]
) -> Explanation:
    return explain_text(_words(given), given.name, classifier, tokenizer, **options)


def _read_labels(path: str) -> dict[int, str]:
    try:
        lines = read_text(Path(path)).splitlines()
    except UserError as error:
        raise UserError(f"{path}: {error}.") from error
    return {number: line.strip() for number, line in enumerate(lines) if line.strip()}


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"There is no device {name!r}: try cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device here.")
    return device
