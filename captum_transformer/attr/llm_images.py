"""Images with segments, as Captum's tool for language models takes them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captum_transformer.attr.beside import continued
from captum_transformer.attr.transformer_method import TransformerMethod
from captum_transformer.calling.target import main_output
from captum_transformer.errors import InvalidInputError
from captum_transformer.visualization.places import places_of

_IDS, _PIXELS = "input_ids", "pixel_values"


def of_segments(method: TransformerMethod, image_input: Any, said: Tensor) -> Tensor:
    """Returns the relevance of an image's segments for each generated token's log-probability.

    Args:
        method: a method whose ``forward_func`` is the model.
        image_input: Captum's ``ImageMaskInput``, whose ``processor_fn`` returns all of the model's
            inputs.
        said: the generated ids.

    Returns:
        ``(generated tokens, segments)``.

    Raises:
        InvalidInputError: if the processor doesn't return pixels and the ids of one text.
    """
    batch = image_input.to_model_input()
    names = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
    if not isinstance(batch, Mapping) or not {_IDS, _PIXELS} <= set(batch):
        raise InvalidInputError(
            f"The `processor_fn` of an `ImageMaskInput` has to return the model's inputs by name, "
            f"with {_IDS!r} and {_PIXELS!r}, got {names}."
        )
    ids = batch[_IDS]
    if len(ids) != 1:
        raise InvalidInputError(f"One text at a time is explained, got {len(ids)} rows of ids.")
    seen = {name: v for name, v in batch.items() if _is_floating(v)}
    rest = {name: v for name, v in batch.items() if name not in seen and name != _IDS}
    model = method.forward_func

    def log_probabilities(input_ids: Tensor, **named: Any) -> Tensor:
        # Rows may be patches or tiles of one image: together they are one sample.
        whole = {name: v[0] if name in seen else v for name, v in named.items()}
        logits = main_output(model(input_ids=input_ids, **whole))
        return torch.log_softmax(logits, -1)

    explain = copy.copy(method)
    explain.forward_func = log_probabilities
    found = explain.attribute_generated(
        {_IDS: ids, **{name: value[None] for name, value in seen.items()}},
        torch.cat([ids, said[None].to(ids)], 1),
        generated_as=_IDS,
        additional_forward_kwargs={
            name: continued(name, value, ids.shape, len(said)) for name, value in rest.items()
        },
    )
    image = image_input.image.convert("RGB")
    places = places_of(lambda images: image_input.processor_fn(images[0])[_PIXELS], [image])
    (pixels,) = places.maps(found[_PIXELS][0].cpu().float(), [(image.height, image.width)])
    masks = torch.stack([mask.bool() for mask in image_input.get_mask_list()])
    return torch.einsum("thw,shw->ts", pixels, masks.cpu().to(pixels.dtype))


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
