"""The inputs or outputs of modules while a model runs, as values on the tape."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from captum_transformer.calling.layers import ChosenLayer
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from captum_transformer.trace.kinds import MOVES
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.operation import Operand
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value


class InnerTensor(NamedTuple):
    """A tensor inside a model, as it was when a module received or returned it.

    Attributes:
        value: its value on the tape.
        operand: its data, which later writes don't change.
        edge: the position of its entries in the autograd graph, perhaps in another shape.
    """

    value: Value
    operand: Operand
    edge: GradientEdge


class WatchedLayers:
    """Records the inputs or the outputs of chosen modules while a model runs.

    Args:
        layers: the chosen modules.
        tape: the tape of the forward pass.
        inputs: whether to record the inputs of the modules instead of their outputs.
    """

    def __init__(self, layers: Sequence[ChosenLayer], tape: Tape, *, inputs: bool) -> None:
        self._layers, self._tape, self._inputs = layers, tape, inputs
        self._calls: dict[int, list[list[InnerTensor]]] = {id(o.module): [] for o in layers}
        self._views: list[tuple[Value, Operand, Tensor]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records the modules' calls within the context, with hooks that are removed on exit."""
        thread = get_ident()

        def note_inputs(module: nn.Module, args: Any, kwargs: Any) -> None:
            if get_ident() == thread:
                self._note(module, (args, kwargs))

        def note_outputs(module: nn.Module, _: Any, output: Any) -> None:
            if get_ident() == thread:
                self._note(module, output)

        with ExitStack() as stack:
            for module in {id(layer.module): layer.module for layer in self._layers}.values():
                handle = (
                    module.register_forward_pre_hook(note_inputs, with_kwargs=True)
                    if self._inputs
                    else module.register_forward_hook(note_outputs)
                )
                stack.callback(handle.remove)
            yield

    def _note(self, module: nn.Module, tensors: Any) -> None:
        if is_dataclass(tensors):
            tensors = vars(tensors)
        with torch._C.DisableTorchFunction():
            distinct = {id(tensor): tensor for tensor in leaves(Tensor, tensors)}.values()
            found = [self._found(tensor) for tensor in distinct if tensor.is_floating_point()]
            self._calls[id(module)].append([inner for inner in found if inner is not None])

    def _found(self, tensor: Tensor) -> InnerTensor | None:
        value = self._tape.find(tensor) if tensor.requires_grad else None
        if value is None:
            return None
        operand = self._tape.operand(tensor, value, keep=True)
        if tensor._is_view() and not self._is_all_of_base(tensor, value):
            self._views.append((value, operand, operand.given))
        else:
            # After a write into a view what was there before is only a part of its base.
            tensor = tensor if tensor._base is None else tensor._base
        return InnerTensor(value, operand, get_gradient_edge(tensor))

    def _is_all_of_base(self, tensor: Tensor, value: Value) -> bool:
        """Whether a view covers its base and nothing else reads the base, as in a linear layer."""
        base, operation = tensor._base, value.operation
        if base is None or operation is None or operation.kind in MOVES:
            return False
        alike = base.numel() == tensor.numel() and base.is_contiguous() and tensor.is_contiguous()
        return alike and self._tape.held_by(base) is None

    def tensors(self) -> list[tuple[InnerTensor, ...]]:
        """Returns the recorded tensors of each layer that depend on the inputs.

        Raises:
            InvalidLayerError: if a layer wasn't called, if the chosen call doesn't exist or is
                ambiguous, or if none of its tensors depends on the inputs.
            UnsupportedOperationError: if a layer's tensor is a view that is written into later.
        """
        found = [tuple(self._of(layer)) for layer in self._layers]
        for value, operand, alias in self._views:
            if operand.given is not alias or alias._version != value.version:
                raise UnsupportedOperationError(
                    f"A tensor of shape {tuple(operand.size)} that a chosen layer "
                    f"{'gets' if self._inputs else 'makes'} is a view, and the model writes into "
                    "it, or into what it is a view of, afterwards. The relevance of its earlier "
                    "value is unknown. Choose another layer."
                )
        return found

    def _of(self, layer: ChosenLayer) -> list[InnerTensor]:
        calls, name = self._calls[id(layer.module)], layer.name
        if not calls:
            raise InvalidLayerError(
                f"The layer {name!r} was not called in the forward pass. Choose one that runs: "
                "some modules only hold weights that their parent uses, as `out_proj` does in "
                "`nn.MultiheadAttention`, and some are skipped in evaluation mode."
            )
        if layer.call is None and len(calls) > 1:
            raise InvalidLayerError(
                f"The layer {name!r} runs {len(calls)} times in a forward pass. Say which call is "
                f"meant, as in `({name!r}, 0)`."
            )
        index = layer.call or 0
        if index not in range(-len(calls), len(calls)):
            raise InvalidLayerError(
                f"Call {index} of the layer {name!r} was asked for, but it runs {len(calls)} times "
                "in a forward pass."
            )
        if not calls[index]:
            raise InvalidLayerError(
                f"The layer {name!r} {'gets' if self._inputs else 'makes'} no tensor of real "
                "numbers that the inputs reach, by itself or in tuples, lists and dictionaries, so "
                "it has no relevance."
            )
        return calls[index]
