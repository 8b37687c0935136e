"""The ids that a model has generated, and whether they belong to their prompt."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captum_transformer.calling.arguments import Arguments
from captum_transformer.errors import InvalidInputError


def continued_input(prompt: Arguments[Any], generated_as: str | None) -> int | None:
    """Returns the index of the input that was continued, or None if the ids are a decoder's."""
    if generated_as is None:
        if len(prompt.inputs) > 1:
            raise InvalidInputError(
                f"There are {len(prompt.inputs)} inputs: which one was continued? Give them by "
                "name, and the name of that one as `generated_as`."
            )
        return 0
    if prompt.keys is None:
        raise InvalidInputError(
            f"`generated_as` is a name, {generated_as!r}, but `inputs` are given by position: "
            "give them by name, too."
        )
    return prompt.keys.index(generated_as) if generated_as in prompt.keys else None


def ids_in(generated: Any) -> Any:
    """Returns the ids in the result of ``generate``, which may be an object that holds them."""
    return generated if isinstance(generated, Tensor) else _part(generated, "sequences", generated)


def logits_in(generated: Any) -> Any:
    """Returns the logits in the result of ``generate``, or None if there are none."""
    return None if isinstance(generated, Tensor) else _part(generated, "logits", None)


def _part(generated: Any, name: str, default: Any) -> Any:
    if isinstance(generated, Mapping):
        return generated.get(name, default)
    return getattr(generated, name, default)


def check_ids(generated: Any, samples: int) -> None:
    """Raises an error unless ``generated`` holds ids for as many samples as the prompt."""
    ids = (
        isinstance(generated, Tensor) and generated.ndim == 2 and not generated.is_floating_point()
    )
    if not ids or len(generated) != samples:
        found = (
            tuple(generated.shape) if isinstance(generated, Tensor) else type(generated).__name__
        )
        raise InvalidInputError(
            f"`generated` must be token ids ({samples}, tokens), as many samples as the inputs, "
            f"got {found}. Of several sequences per prompt, repeat the prompt for each."
        )


def length_of_prompt(prompt: Tensor, generated: Tensor) -> int:
    """Returns the number of tokens of the prompt, which the generated ids must begin with."""
    if prompt.is_floating_point() or prompt.ndim != 2:
        raise InvalidInputError(
            "Generated ids can only continue token ids (samples, tokens), but the input has the "
            f"shape {tuple(prompt.shape)}. Is it another argument that takes them? Give inputs by "
            "name, and the name of that argument as `generated_as`."
        )
    length = prompt.shape[1]
    if generated.shape[1] < length or bool((generated[:, :length] != prompt).any()):
        raise InvalidInputError(
            "`generated` does not begin with the prompt. Pass all that `generate` returned. For an "
            "encoder-decoder model, give the inputs by name, and as `generated_as` the name of the "
            "argument that takes the decoder's ids, such as 'decoder_input_ids'."
        )
    return length


def fitting(rather_than: Tensor | int, tokens: Tensor) -> Tensor:
    """Returns the id that each generated token is compared with."""
    try:
        others = torch.as_tensor(rather_than, device=tokens.device)
        if others.is_floating_point():
            raise TypeError(others.dtype)
        others = others.to(tokens.dtype)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"`rather_than` must be token ids, got {rather_than!r}. A tokenizer has them: "
            "`tokenizer.convert_tokens_to_ids(...)`."
        ) from error
    try:
        return others.expand_as(tokens)
    except RuntimeError as error:
        raise InvalidInputError(
            f"`rather_than` must be an id for each generated token, {tuple(tokens.shape)}, got the "
            f"shape {tuple(others.shape)}."
        ) from error
