"""``captum-transformer explain``: explains the classes of images and texts."""

import argparse

import torch

from captum_transformer.calling.memory import is_out_of_memory
from captum_transformer.cli.errors import UserError, one_line
from captum_transformer.cli.explainer import explainer_of
from captum_transformer.cli.inputs import given_inputs, readable
from captum_transformer.cli.loaded import PIXELS, HuggingFaceModel, TimmModel, Wanted
from captum_transformer.cli.models import load_model
from captum_transformer.cli.outputs import Outputs
from captum_transformer.cli.progress import complain, with_progress
from captum_transformer.errors import ExplanationError, InvalidInputError, InvalidTargetError

_ERRORS = RuntimeError, MemoryError, AssertionError, ValueError, IndexError, OSError


def run(arguments: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        arguments: The arguments, as parsed by `captum_transformer.cli.options`.

    Returns:
        0, or 1 if some of the inputs couldn't be explained.

    Raises:
        UserError: If nothing could be explained at all.
    """
    given = given_inputs(arguments.inputs, arguments.text)
    outputs = Outputs(arguments, given)
    loaded = _load(arguments)
    explain = explainer_of(loaded, arguments)
    given = readable(given, images=loaded.reads == PIXELS)
    failed = 0
    for each in with_progress(given, len(given)):
        try:
            explanation = explain(each)
            outputs.add(each, explanation)
        # An error in one input must not affect the others.
        except UserError as error:
            failed += 1
            complain(f"error: {each.name}: {error}")
        # Errors of the model itself and of the methods, whose messages say what to do.
        except _ERRORS as error:
            failed += 1
            complain(f"error: {each.name}: {_reason(error)}")
    outputs.finish()
    if failed and len(given) > 1:
        complain(f"{failed} of {len(given)} inputs could not be explained")
    return int(failed > 0)


def _reason(error: Exception) -> str:
    """Returns why an input isn't explained: this package's message, or another library's."""
    if is_out_of_memory(error):
        return "out of memory; try --device cpu or a smaller input"
    if isinstance(error, (ExplanationError, InvalidInputError, InvalidTargetError)):
        return one_line(error, most=2000)
    return (
        f"the model can't run on it ({type(error).__name__}: {one_line(error)}). Check that its "
        "tokenizer, or the size and channels of its images, fit."
    )


def _load(arguments: argparse.Namespace) -> TimmModel | HuggingFaceModel:
    """Loads the model, and moves it to its device."""
    wanted = Wanted(
        arguments.model,
        arguments.architecture,
        arguments.image_size,
        arguments.random_weights,
        arguments.weights,
        dict(arguments.model_kwargs),
    )
    loaded = load_model(wanted)
    if arguments.random_weights:
        complain("warning: the weights are random, so the explanations mean nothing")
    device = _device(arguments.device)
    try:
        loaded.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The model can't be moved to {device}: {one_line(error)}") from error
    return loaded


def _device(name: str) -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = torch.device("cpu") if found is None else found
    if name == "auto":
        return here
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"There is no device {name!r}: try cpu, cuda, cuda:1 or mps.") from error
    if device.type not in ("cpu", here.type):
        raise UserError(f"PyTorch finds no {device.type.upper()} device here.")
    return device
