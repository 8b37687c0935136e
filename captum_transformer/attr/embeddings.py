"""The two embeddings that are compared, and the inputs they are made from."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from captum_transformer.calling.arguments import Arguments
from captum_transformer.errors import AmbiguousOutputError, InvalidInputError
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.numeric import accumulation_dtype


def require_pairs(one: Arguments[Any], two: Arguments[Any]) -> None:
    """Raises an error if the two sides have several inputs, or different numbers of samples."""
    for name, arguments in (("inputs", one), ("other_inputs", two)):
        if len(arguments.inputs) > 1:
            raise InvalidInputError(
                f"`{name}` holds {len(arguments.inputs)} tensors, but the tokens of one on each "
                "side are paired. Pass what goes with it, such as a mask, as "
                "`additional_forward_kwargs` or `other_forward_kwargs`. If several are to be "
                "explained, explain them one after the other, with the others passed so."
            )
    if one.samples != two.samples:
        raise InvalidInputError(
            f"`inputs` holds {one.samples} samples and `other_inputs` {two.samples}: the first is "
            "compared with the first, the second with the second. To compare one with many, repeat "
            "it: `inputs.expand(len(other_inputs), -1)`."
        )


def embedding_of(forward: TracedForward, name: str) -> Tensor:
    """Returns the output of a model, which must be one embedding for each sample."""
    output: Any = forward.output
    samples = len(forward.inputs[0])
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == samples:
        return output.detach().to(accumulation_dtype(output.dtype))
    found = f"a {type(output).__name__}"
    if isinstance(output, Tensor):
        found = f"a tensor of the shape {tuple(output.shape)}"
    elif isinstance(output, Mapping):
        found += f" of {', '.join(map(repr, output))}"
    raise AmbiguousOutputError(
        f"For `{name}` the model returned {found}; it must be a tensor with one embedding for each "
        f"of the {samples} samples, ({samples}, dimensions). Pass a function that picks or pools "
        "it, for instance `lambda ids, mask: model(ids, mask).pooler_output`, or the mean over "
        "tokens, `(hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)`."
    )


def require_same_width(one: Tensor, other: Tensor) -> None:
    """Raises an error if two embeddings have no dot product."""
    if one.shape != other.shape:
        raise InvalidInputError(
            f"The embedding of `inputs` has {one.shape[1]} dimensions and that of `other_inputs` "
            f"{other.shape[1]}: they have no dot product. Pass functions that end in the layers by "
            "which the two towers are compared, such as CLIP's projections."
        )
