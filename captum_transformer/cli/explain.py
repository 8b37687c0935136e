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
from captum_transformer.cli.models import HuggingFaceModel, Wanted, load_model
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
        raise UserError("There is nothing to explain: give image files, .txt files or --text.")
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
    kind: Kind = "text" if reads == "input_ids" else "image"
    classifier = Classifier(
        loaded.model,
        names,
        kind=kind,
        methods=arguments.method or (),
        classes=[find_class(asked, names, loaded.classes) for asked in arguments.classes],
        top=arguments.top,
    )
    if isinstance(loaded, HuggingFaceModel) and reads == "input_ids":
        tokenizer = load_tokenizer(loaded)
        longest = longest_text(loaded, tokenizer)
        options = {
            "longest": longest,
            "by_token": arguments.tokens,
            "special_in_scale": arguments.special_in_scale,
        }
        return partial(_text, classifier=classifier, tokenizer=tokenizer, options=options)
    if reads != "pixel_values":
        raise UserError(
            f"{type(loaded.model).__name__} reads {reads}; here, only images and texts can be "
            "explained. Do it in Python, see docs/models.md."
        )
    preparation = preparation_of(loaded)

    def explain(given: Given) -> Explanation:
        if given.text is not None or given.path.suffix.lower() == _TEXT_SUFFIX:
            raise UserError("it is a text, and the model reads images")
        return explain_image(given.path, given.name, classifier, preparation)

    return explain


def _text(
    given: Given, classifier: Classifier, tokenizer: object, options: Mapping[str, Any]
) -> Explanation:
    if given.text is None and given.path.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError("it is an image, and the model reads texts")
    text = read_text(given.path) if given.text is None else given.text
    return explain_text(text, given.name, classifier, tokenizer, **options)


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
