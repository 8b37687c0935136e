"""``captum-transformer inspect``: describes what the trace finds in a model."""

import argparse
from typing import Any

import torch

from captum_transformer import describe
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.loaded import HuggingFaceModel, TimmModel, Wanted
from captum_transformer.cli.models import load_model
from captum_transformer.errors import ExplanationError

_MAX_PIXELS = 4096**2


def run(arguments: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        arguments: The arguments, as parsed by `captum_transformer.cli.options`.

    Returns:
        0.

    Raises:
        UserError: If the model can't be built, or can't be run on dummy inputs.
    """
    # The description doesn't depend on the weights, so only those of a file are loaded.
    loaded = load_model(
        Wanted(
            arguments.model,
            arguments.architecture,
            arguments.image_size,
            random_weights=True,
            part=arguments.weights,
            arguments=dict(arguments.model_kwargs),
        )
    )
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    inputs = _made_up(loaded, arguments)
    try:
        seen = describe(loaded.model, inputs)
    except (ExplanationError, AssertionError) as error:
        raise UserError(f"The model can't be explained: {error}") from error
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"The model can't run on dummy inputs ({error}); inspect it in Python, see "
            "docs/your_model.md."
        ) from error
    print(f"{type(loaded.model).__name__}, {count:,} parameters")  # noqa: T201
    print(seen)  # noqa: T201
    return 0


def _made_up(loaded: TimmModel | HuggingFaceModel, arguments: argparse.Namespace) -> Any:
    if isinstance(loaded, TimmModel):
        channels, height, width = loaded.config.get("input_size", (3, 224, 224))
        return _image(int(channels), int(height), int(width))
    config = loaded.config
    reads = getattr(loaded.model, "main_input_name", None)
    if reads == "pixel_values":
        known = getattr(config, "image_size", None) or 224
        height, width = known if isinstance(known, list | tuple) else (known, known)
        if arguments.image_size is not None:
            height = width = arguments.image_size
        return {reads: _image(getattr(config, "num_channels", 3), int(height), int(width))}
    if reads == "input_ids":
        vocabulary = config.get_text_config().vocab_size
        ids = torch.arange(arguments.length)[None] % vocabulary
        decoder = {"decoder_input_ids": ids[:, :4]} if config.is_encoder_decoder else {}
        return {reads: ids, **decoder}
    raise UserError(
        f"{type(loaded.model).__name__} reads {reads}; dummy inputs exist for images and texts "
        "only. Inspect it in Python, see docs/your_model.md."
    )


def _image(channels: int, height: int, width: int) -> torch.Tensor:
    if not 0 < height * width <= _MAX_PIXELS:
        raise UserError(f"An image of {height} x {width} is too large to try.")
    return torch.rand(1, channels, height, width)
