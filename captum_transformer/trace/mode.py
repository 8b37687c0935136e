"""The one interception: a torch function mode that writes a forward pass down."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.einsum import with_letters
from captum_transformer.trace.functions import (
    Function,
    Kind,
    describe,
    deterministic,
    requested_inplace,
    without_inplace,
)
from captum_transformer.trace.layout import lay_out
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.reach import LOOKUPS, leave_out_constants, reached
from captum_transformer.trace.recognise import (
    Pattern,
    explicit_attention,
    fused_attention,
    recognise,
)
from captum_transformer.trace.tape import Tape

_RANDOM = frozenset({Kind.ATTENTION, Kind.NORM})
_ATTENDS = frozenset({Kind.ATTENTION, Kind.MATMUL})
_LIKE_ANOTHER = frozenset({"expand_as", "reshape_as", "view_as", "type_as"})


class ForwardRule(Protocol):
    """A rule that changes how autograd sees an operation, never what the operation computes."""

    def __call__(
        self,
        kind: Kind,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        name: str,
        pattern: Pattern | None,
        tape: Tape,
    ) -> Any:
        """Returns the result of the operation, or ``NotImplemented`` to leave it as it is."""


class Trace(TorchFunctionMode):
    """Writes every operation that the inputs reach on a tape, and finds the attention calls.

    The operations themselves run natively, with dropout off and running batch statistics. Nothing
    is patched: leaving the context undoes all.

    Args:
        keep: the kinds of operation whose operands the rules will want to see.
        names: dotted module names by the modules' identity.
        rule: changes the gradient of some operations, for the methods that are gradients.

    Attributes:
        tape: what the inputs reach.
        calls: the attention calls among tokens.
        shares_learned_attention: whether something learned attended once for all samples.
    """

    def __init__(
        self,
        keep: frozenset[Kind] = frozenset(),
        names: dict[int, str] | None = None,
        rule: ForwardRule | None = None,
    ) -> None:
        super().__init__()
        self.tape = Tape(keep, lay_out)
        self.calls: list[AttentionCall] = []
        self._names = names or {}
        self._rule = rule
        self._samples = 0
        self.shares_learned_attention = False

    def enter_input(self, tensor: Tensor) -> Value:
        """Makes a tensor, samples first, an input of the trace."""
        value = self.tape.new_value(tensor)
        self._samples = tensor.shape[0]
        self.tape.add_root(tensor)
        return value

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        function = describe(func)
        if function.kind is Kind.QUERY:
            return func(*args, **kwargs)
        if function.body is not None:
            with self:
                return function.body(*args, **kwargs)
        if function.kind is Kind.DROPOUT:
            return args[0] if args else kwargs["input"]
        if function.name in _LIKE_ANOTHER:
            return self._run_like_another(function.name, *args, **kwargs)
        if function.kind in _RANDOM:
            args, kwargs = deterministic(func, function, args, kwargs)
        if function.name == "einsum":
            args = with_letters(args)
        operands: list[Operand] = []
        frozen = self._freeze(args, operands), self._freeze(kwargs, operands) if kwargs else {}
        traced = [operand for operand in operands if operand.value is not None]
        inplace = function.inplace or (bool(traced) and requested_inplace(func, args, kwargs))
        if not traced and not self._attends_learned(function, operands):
            if inplace and args and isinstance(args[0], Tensor):
                self.tape.before_write(args[0])
            return func(*args, **kwargs)
        if function.name == "set_data":
            raise UnseenOperationError(
                "The model assigns to `.data` of a tensor that depends on the inputs, which hides "
                "the dependence from autograd and from the trace. Use an ordinary in-place "
                "operation such as `tensor.copy_(...)`."
            )
        return self._run(func, function, args, kwargs, frozen, operands, inplace=inplace)

    def _attends_learned(self, function: Function, operands: list[Operand]) -> bool:
        """Whether learned queries, one set for each sample, attend to each other (as in DETR)."""
        if function.kind not in (Kind.SOFTMAX, Kind.ATTENTION) or not torch.is_grad_enabled():
            return False
        if not operands or not operands[0].dtype.is_floating_point or len(operands[0].size) < 3:
            return False
        of_each_sample = operands[0].size[0] % self._samples == 0
        self.shares_learned_attention |= not of_each_sample
        return of_each_sample

    def _run_like_another(self, name: str, tensor: Tensor, other: Tensor) -> Any:
        """Of the other tensor only the shape or the type counts, so it is no operand."""
        with self:
            if name == "type_as":
                return tensor.to(other.device, other.dtype)
            return getattr(tensor, name.removesuffix("_as"))(other.shape)

    def _run(
        self,
        func: Callable[..., Any],
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        frozen: tuple[tuple[Any, ...], dict[str, Any]],
        operands: list[Operand],
        *,
        inplace: bool,
    ) -> Any:
        leave_out_constants(operands)
        pattern = None
        if function.kind in _ATTENDS:
            pattern = recognise(function, args, kwargs, operands)
        keep = pattern is not None or function.kind in self.tape.keep
        self.tape.settle(operands, keep=keep)
        written: Tensor | None = None
        if inplace:
            written = args[0] if args else kwargs["input"]
            self.tape.before_write(written)
        result = NotImplemented
        if self._rule is not None:
            result = self._rule(
                function.kind,
                func,
                args,
                kwargs,
                name=function.name,
                pattern=pattern,
                tape=self.tape,
            )
        if result is NotImplemented:
            result = func(*args, **kwargs)
        if written is None and self.tape.held_by(result) is not None:
            return result
        if function.name == "batch_norm" and result.requires_grad:
            # On CPUs its derivative is wrong if the gradient is laid out otherwise: tokens first
            # as behind a convolutional stem, or channels last as of a spectrogram.
            result.register_hook(_LaidOut(result.stride()))
        outputs = reached(self.tape, function, result if written is None else written, operands)
        if not outputs:
            if written is not None:
                self.tape.release(written)
            return result
        call = without_inplace(func) if inplace and not function.inplace else function.call
        kind = function.kind
        if function.name in LOOKUPS and operands[0].value is None:
            kind = Kind.EMBEDDING
        operation = self.tape.append(function.name, kind, call, *frozen, operands, outputs)
        if not operation.traced():
            self._lay_out_learned(operation)
        if outputs[0] is not None and (kind is Kind.EMBEDDING or (keep and kind is Kind.LINEAR)):
            operation.result = self.tape.operand(outputs[0], None, keep=True)
        if outputs[0] is not None and (kind is Kind.EMBEDDING or pattern):
            operation.edge = get_gradient_edge(outputs[0])
        if pattern is not None and outputs[0] is not None:
            self._add_call(operation, pattern, outputs[0])
        if written is not None:
            self.tape.after_write(written)
        return result

    # Not a closure: one that calls itself is a cycle, and would keep the operands alive.
    def _freeze(self, argument: Any, operands: list[Operand]) -> Any:
        """The arguments with an `Operand` in the place of each tensor, all of which are listed."""
        if isinstance(argument, Tensor):
            operand = Operand(argument, self.tape.find(argument))
            operands.append(operand)
            return operand
        if isinstance(argument, (list, tuple)):
            parts = [self._freeze(part, operands) for part in argument]
            return parts if isinstance(argument, list) else tuple(parts)
        if isinstance(argument, dict):
            return {key: self._freeze(part, operands) for key, part in argument.items()}
        return argument

    def _lay_out_learned(self, operation: Operation) -> None:
        output = operation.outputs[0]
        if output is None:
            raise RuntimeError("attention among learned queries is always recorded")
        output.samples = Axis.of(output.shape, 0, self._samples)
        if operation.kind is Kind.ATTENTION:
            output.features = (Axis.of(output.shape, len(output.shape) - 1),)

    def _add_call(self, operation: Operation, pattern: Pattern, output: Tensor) -> None:
        layer, module = len(self.calls), self._calling_module()
        call: AttentionCall
        if operation.kind is Kind.ATTENTION:
            call = fused_attention(layer, module, operation)
        else:
            call = explicit_attention(layer, module, operation, pattern)
        operation.attention = call
        # Products of queries and keys have come to their end; what the values are made of has not.
        call.output.mixtures = call.value.value.mixtures if call.value.value is not None else 0
        operation.result = self.tape.operand(output, None, keep=True)
        if call.among_channels:
            call.layer = -1
            return
        call.output.attention |= 1 << layer
        self.calls.append(call)

    def _calling_module(self) -> str:
        for module in _modules_on_stack():
            return self._names.get(id(module)) or type(module).__name__
        return ""


class _LaidOut:
    """Gives a gradient the layout of what it is the gradient of."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        self._stride = stride

    def __call__(self, gradient: Tensor) -> Tensor:
        return torch.empty_strided(
            gradient.shape, self._stride, dtype=gradient.dtype, device=gradient.device
        ).copy_(gradient)


def _modules_on_stack() -> Iterator[nn.Module]:
    frame = sys._getframe(2)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, nn.Module):
            yield caller
        if frame.f_back is None:
            return
        frame = frame.f_back
