"""Computes the relevance of the values inside a model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer import TransformerMethod
from lightning_callbacks.explanations.checks import MethodFactory
from lightning_callbacks.explanations.explanation import explain, explain_layers
from lightning_callbacks.samples.batch import Samples


class FromLayer(nn.Module):
    """The part of a model that follows the input of one of its submodules.

    Everything that doesn't depend on that input is a constant: what the model computes before, and
    what bypasses the submodule. A method with this as its model explains the submodule's input; any
    method with Captum's interface can be used.

    Args:
        model: The model.
        layer: The submodule.
        call: The number of its call in a forward pass.
        samples: The samples that the model is called with.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        >>> rest = FromLayer(model, model[1], 0, Samples((torch.ones(1, 2),), None))
        >>> bool((rest(torch.zeros(1, 2), torch.ones(1, 2)) == 0).all())
        True
    """

    def __init__(self, model: nn.Module, layer: nn.Module, call: int, samples: Samples) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.call = call
        self.samples = samples

    def forward(self, values: Tensor, *others: Tensor) -> Any:
        """Runs the model with another input of the layer.

        Args:
            values: The first argument to call the layer with.
            others: The samples' tensors, as returned by `row_tensors`.

        Returns:
            What the model returns.
        """
        parts = iter(others)
        samples = self.samples.map(
            lambda tensor: next(parts) if _has_rows(tensor, self.samples) else tensor
        )
        gradients = torch.is_grad_enabled()
        calls = 0

        def put_in(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 != self.call:
                return None
            torch.set_grad_enabled(gradients)
            # A copy, since the layer may write into it. It replaces every argument that is the
            # input: an attention layer may get one tensor as its queries, keys and values.
            first, other = _first(args, kwargs), values.clone()
            return (
                tuple(other if value is first else value for value in args),
                {name: other if value is first else value for name, value in kwargs.items()},
            )

        with _hook(self.layer, put_in), torch.set_grad_enabled(False):
            return samples.run(self.model)


def layer_relevance(
    model: nn.Module,
    layers: Sequence[str],
    method: MethodFactory,
    samples: Samples,
    pairs: Sequence[tuple[int, int]],
    *,
    single: bool = False,
    internal_batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Returns a method's attributions to the inputs of submodules instead of the model's inputs.

    A `TransformerMethod` computes all of them in one explanation of the model, see its
    `attribute_layers`. Other methods explain the part of the model that follows each submodule's
    input, see `FromLayer`, at the cost of one explanation each.

    Args:
        model: The model.
        layers: The submodules' names, as in ``model.named_modules()``.
        method: Creates the method.
        samples: The samples, on the model's device.
        pairs: Sample numbers and class ids.
        single: The model's output has no dimension for classes.
        internal_batch_size: How many samples to explain at a time.

    Returns:
        For each layer all values, flat, float32 on the CPU; if it is called several times, the
        values of all calls.

    Raises:
        ValueError: If a submodule isn't called, or its first argument isn't a floating-point tensor
            with the samples in its first dimension.

    Example:
        >>> from captum.attr import InputXGradient
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
        >>> samples = Samples((torch.ones(1, 2),), None)
        >>> layer_relevance(model, ["1"], InputXGradient, samples, [(0, 1)])["1"].shape
        torch.Size([4])
    """
    samples = replace(samples, labels=None)
    entering = _inputs(model, layers, samples)
    made = method(model)
    options: dict[str, Any] = {"single": single, "internal_batch_size": internal_batch_size}
    if isinstance(made, TransformerMethod):
        calls = [(layer, call) for layer in layers for call in range(len(entering[layer]))]
        found = explain_layers(made, calls, samples, pairs, **options)
        return {
            layer: torch.cat(
                [v for (name, _), v in zip(calls, found, strict=True) if name == layer]
            )
            for layer in layers
        }
    values: dict[str, Tensor] = {}
    for layer, tensors in entering.items():
        place, parts = model.get_submodule(layer), []
        for call, tensor in enumerate(tensors):
            inside = Samples((tensor,), None, row_tensors(samples))
            rest = method(FromLayer(model, place, call, samples))
            explanations = explain(rest, inside, pairs, **options)
            parts += [e.attributions[0].flatten() for e in explanations.values()]
        values[layer] = torch.cat(parts)
    return values


def row_tensors(samples: Samples) -> tuple[Tensor, ...]:
    """Returns the tensors with a row for each sample, which methods repeat like the inputs.

    Args:
        samples: The samples.

    Returns:
        The tensors.
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if _has_rows(tensor, samples):
            found.append(tensor)
        return tensor

    samples.map(note)
    return tuple(found)


def _has_rows(tensor: Tensor, samples: Samples) -> bool:
    return tensor.dim() > 0 and len(tensor) == len(samples)


def _inputs(model: nn.Module, layers: Sequence[str], samples: Samples) -> dict[str, list[Tensor]]:
    """Returns the first argument of each layer in each of its calls."""
    taken = _recorded(model, layers, samples)
    # If samples are in the second dimension, as in nn.Transformer by default, there may be as many
    # samples as tokens. A run with one sample reveals this.
    alone = _recorded(model, layers, samples.select([0]))
    for layer in layers:
        known = all(_is_explainable(values, len(samples)) for values in taken[layer])
        if taken[layer] and known and all(_is_explainable(values, 1) for values in alone[layer]):
            continue
        found = [
            tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in taken[layer]
        ]
        raise ValueError(
            f"The submodule {layer!r} has been given {found or 'nothing: it was not called'}. Name "
            "submodules in `layers` that run for each sample, and whose first argument is a tensor "
            f"of real numbers with the {len(samples)} samples in its first dimension."
        )
    return taken


def _recorded(model: nn.Module, layers: Sequence[str], samples: Samples) -> dict[str, list[Any]]:
    taken: dict[str, list[Any]] = {layer: [] for layer in layers}

    def recorder(calls: list[Any]) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = _first(args, kwargs)
            calls.append(first.detach().clone() if isinstance(first, Tensor) else first)

        return record

    with ExitStack() as stack, torch.no_grad():
        for layer, calls in taken.items():
            stack.enter_context(_hook(model.get_submodule(layer), recorder(calls)))
        samples.run(model)
    return taken


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return next(iter((*args, *kwargs.values())), None)


def _is_explainable(values: Any, samples: int) -> bool:
    known = isinstance(values, Tensor) and values.is_floating_point() and values.dim() > 0
    return known and len(values) == samples


@contextmanager
def _hook(layer: nn.Module, function: Any) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(function, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
