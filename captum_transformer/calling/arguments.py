"""The arguments of a model: the inputs that are explained, and those that go with them."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor

from captum_transformer.calling.copies import copied, tensors_in
from captum_transformer.errors import InvalidInputError

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...], dict[str, Tensor], Mapping[str, Tensor])


class Arguments(Generic[Inputs]):
    """The arguments of one call of a model.

    Args:
        inputs: the tensors to explain, samples first: a tensor or a tuple of tensors, passed by
            position, or a mapping of names to tensors, passed by name. In the output of a tokenizer
            or processor of Transformers, token ids and floating point values are explained; masks,
            types and positions go with them.
        additional_forward_args: further arguments by position, as in Captum.
        additional_forward_kwargs: further arguments by name.

    Attributes:
        inputs: the tensors that are explained.
        keys: their names, if they are passed by name.
        samples: how many samples they hold.

    Raises:
        InvalidInputError: if the inputs can't be explained, or a name is given twice.

    Example:
        >>> arguments = Arguments({"x": torch.ones(2, 3)}, additional_forward_kwargs={"scale": 2})
        >>> arguments.call(lambda x, scale: x * scale, arguments.inputs).sum()
        tensor(12.)
        >>> arguments.restored(arguments.inputs)["x"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        inputs: Inputs,
        additional_forward_args: Any = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        given, beside = _told_apart(inputs)
        self._single = isinstance(given, Tensor)
        self.keys: tuple[str, ...] | None = tuple(given) if isinstance(given, Mapping) else None
        self._args = tuple(_format_additional_forward_args(additional_forward_args) or ())
        self._kwargs = _named(additional_forward_kwargs)
        if twice := [key for key in beside if key in self._kwargs]:
            raise InvalidInputError(
                f"{twice} are among both what the tokenizer or processor has made and "
                "`additional_forward_kwargs`: give each argument once."
            )
        self._kwargs |= beside
        self.inputs = _tensors(given)
        _validate(self.inputs)
        self.samples = self.inputs[0].shape[0]
        if self.keys is None:
            return
        if twice := [key for key in self.keys if key in self._kwargs]:
            raise InvalidInputError(
                f"{twice} are among both `inputs` and `additional_forward_kwargs`: give each "
                "argument once, as one of `inputs` if it is to be explained."
            )
        if self._args:
            raise InvalidInputError(
                "`inputs` are given by name, and `additional_forward_args` by position: their "
                "positions are ambiguous. Pass them by name, as `additional_forward_kwargs`."
            )

    def call(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """Calls a function with other tensors in place of the inputs.

        The other arguments are copied, so that each call starts from what the caller has passed.
        """
        args, kwargs = copied((self._args, self._kwargs))
        if self.keys is None:
            return function(*inputs, *args, **kwargs)
        return function(**dict(zip(self.keys, inputs, strict=True)), **kwargs)

    def count(self, size: int | None) -> int:
        """Returns how many batches of a size there are."""
        return 1 if size is None or size >= self.samples else -(-self.samples // max(size, 1))

    def batches(self, size: int | None) -> "Iterator[tuple[slice, Arguments[Inputs]]]":
        """Yields the arguments of a few samples at a time, with the slice of these samples.

        Args:
            size: the number of samples at a time; None for all at once. Tensors among further
                arguments that have as many rows as there are samples are divided with them.

        Raises:
            InvalidInputError: if the size is not positive, or it is not known how to divide an
                argument.
        """
        if size is not None and size < 1:
            raise InvalidInputError(f"`internal_batch_size` must be at least 1, got {size}.")
        if size is None or size >= self.samples:
            yield slice(None), self
            return
        for start in range(0, self.samples, size):
            rows = slice(start, start + size)
            inputs = self.restored([tensor[rows] for tensor in self.inputs])
            args, kwargs = (rows_of(a, rows, self.samples) for a in (self._args, self._kwargs))
            yield rows, Arguments(inputs, args, kwargs)

    @property
    def further(self) -> dict[str, Any]:
        """The arguments that go with the inputs, by the name that a user would use."""
        positional = {f"additional_forward_args[{i}]": a for i, a in enumerate(self._args)}
        named = {f"additional_forward_kwargs[{k!r}]": a for k, a in self._kwargs.items()}
        return positional | named

    @property
    def further_as_given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that go with the inputs, by position and by name."""
        return self._args, self._kwargs

    def restored(self, tensors: Sequence[Tensor]) -> Inputs:
        """Returns tensors, one for each input, in the inputs' form: a tensor, a tuple or a dict."""
        if self.keys is not None:
            return cast(Inputs, dict(zip(self.keys, tensors, strict=True)))
        return cast(Inputs, tensors[0] if self._single else tuple(tensors))

    def names(self, function: Callable[..., Any]) -> tuple[str, ...]:
        """Returns the inputs' names: as given, or otherwise from the function's signature."""
        if self.keys is not None:
            return self.keys
        try:
            signature = inspect.signature(getattr(function, "forward", function))
        except (TypeError, ValueError):
            signature = inspect.Signature()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = [p.name for p in signature.parameters.values() if p.kind in positional]
        count = len(self.inputs)
        return tuple(named[i] if i < len(named) else f"input_{i}" for i in range(count))

    def refuse_unrepeated(self, error: Exception) -> None:
        """Raises an error if the model may have failed as arguments by name weren't repeated."""
        rows = {
            name: len(argument)
            for name, argument in self._kwargs.items()
            if isinstance(argument, Tensor)
            and argument.ndim
            and 1 < len(argument) < self.samples
            and self.samples % len(argument) == 0
        }
        if rows:
            raise InvalidInputError(
                f"The model has failed ({error}). There are {self.samples} samples, but rows in "
                f"`additional_forward_kwargs`: {rows}. Captum's tools that repeat the samples "
                "(NoiseTunnel, sensitivity_max) repeat `additional_forward_args`, and nothing that "
                "is passed by name. Give the method a function that takes them by position, "
                "`lambda x, mask: model(x, attention_mask=mask)`, and pass them as "
                "`additional_forward_args`."
            ) from error


def rows_of(argument: Any, rows: slice | Tensor, samples: int) -> Any:
    """Returns some rows of the (nested) tensors that have one for each sample; the rest unchanged.

    Raises:
        InvalidInputError: if an object holds such tensors: it is unknown what else in it belongs
            to samples.
    """
    if isinstance(argument, Tensor):
        return argument[rows] if argument.ndim and len(argument) == samples else argument
    if type(argument) in (tuple, list):
        return type(argument)(rows_of(part, rows, samples) for part in argument)
    if type(argument) is dict:
        return {key: rows_of(part, rows, samples) for key, part in argument.items()}
    if any(tensor.ndim and len(tensor) == samples for tensor in tensors_in(argument)):
        raise InvalidInputError(
            f"A few samples at a time are explained, but one of the further arguments is a "
            f"{type(argument).__name__} that holds tensors of all {samples} samples, and how to "
            "take some of them out of it is not known (it is for tensors, and for tuples, lists "
            "and dicts of them). Explain the samples all at once, or in calls of your own that "
            "each get what belongs to their samples."
        )
    return argument


def _told_apart(inputs: Any) -> tuple[Any, dict[str, Any]]:
    """Splits the output of Transformers' tokenizers and processors into inputs and other arguments.

    Masks, types and positions are integers like token ids, and are looked up in tables as well.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(
        inputs, (transformers.BatchEncoding, transformers.BatchFeature)
    ):
        return inputs, {}
    explained = {
        name: value
        for name, value in inputs.items()
        if name == "input_ids" or (isinstance(value, Tensor) and value.is_floating_point())
    }
    return explained, {name: inputs[name] for name in inputs if name not in explained}


def _named(additional_forward_kwargs: Any) -> dict[str, Any]:
    if additional_forward_kwargs is None:
        return {}
    if not isinstance(additional_forward_kwargs, Mapping):
        raise InvalidInputError(
            "`additional_forward_kwargs` must be a mapping of names to arguments, got a "
            f"{type(additional_forward_kwargs).__name__}."
        )
    return dict(additional_forward_kwargs)


def _tensors(inputs: Any) -> tuple[Tensor, ...]:
    tensors = (inputs,) if isinstance(inputs, Tensor) else inputs
    if isinstance(inputs, Mapping):
        if wrong := [key for key in inputs if not isinstance(key, str)]:
            raise InvalidInputError(f"The keys of `inputs` must be argument names, got {wrong}.")
        tensors = tuple(inputs.values())
    if not isinstance(tensors, tuple) or not tensors:
        empty = "n empty" if isinstance(tensors, tuple) else ""
        raise InvalidInputError(
            "`inputs` must be a tensor, a tuple of tensors or a mapping of argument names to "
            f"tensors, got a{empty} {type(inputs).__name__}."
        )
    keys = list(inputs) if isinstance(inputs, Mapping) else range(len(tensors))
    for key, tensor in zip(keys, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise InvalidInputError(
                f"`inputs` must hold tensors, got a {type(tensor).__name__} at {key!r}. Pass "
                f"everything that isn't explained as `additional_forward_args` or "
                f"`additional_forward_kwargs`."
            )
    return tensors


def _validate(inputs: tuple[Tensor, ...]) -> None:
    for tensor in inputs:
        if tensor.is_nested or tensor.layout is not torch.strided:
            raise InvalidInputError(
                "A nested or sparse input can't be explained, because it is unknown which of its "
                "entries belong to which token. Pass a padded, dense one, and a mask as one of "
                "`additional_forward_args` or `additional_forward_kwargs`."
            )
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise InvalidInputError(
                f"An input of dtype {tensor.dtype} can't be explained: pass floating point values "
                "or integer token ids, and masks as `additional_forward_args` or "
                "`additional_forward_kwargs`."
            )
        if tensor.ndim == 0 or tensor.shape[0] != inputs[0].shape[0] or not tensor.numel():
            shapes = [tuple(t.shape) for t in inputs]
            raise InvalidInputError(
                f"Inputs must be non-empty with the samples along dimension 0, as many in each: "
                f"got shapes {shapes}. If the model takes the patches of all samples in one "
                "sequence, explain a function that gets them as (samples, patches, values) and "
                "flattens them for the model."
            )
