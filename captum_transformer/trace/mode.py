"""The one interception: a torch function mode that writes a forward pass down."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.calls import as_run, without_inplace
from captum_transformer.trace.flex import log_sum_exp_is_used
from captum_transformer.trace.functions import (
    ENTRY,
    LOG_SUM_EXP,
    Function,
    describe,
    kind_of,
)
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.layout import lay_out
from captum_transformer.trace.nested import leaves, mapped
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.reach import leave_out_constants, reached, with_gradient, written_by
from captum_transformer.trace.recognise import (
    Pattern,
    explicit_attention,
    fused_attention,
    is_weighted,
    recognise,
    require_described,
    weighted_sum,
)
from captum_transformer.trace.streams import query_value
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.writes import that_only_looks

_ATTENDS = frozenset({Kind.ATTENTION, Kind.PRODUCT})
# Of these it is said where in the model they are, beside those whose operands are kept: rules may
# refuse them. The others are cheap and many.
_NAMED = frozenset(Kind) - MOVES - {Kind.COPY, Kind.MUL, Kind.DIV} | {Kind.CONCATENATE, Kind.PAD}


# A rule changes how autograd sees an operation, never what the operation computes. It runs the
# operation out of place and returns the result, or `NotImplemented` to leave it as it is.
ForwardRule = Callable[[Operation], Any]
ForwardRules = Mapping[Kind, ForwardRule]


class Trace(TorchFunctionMode):
    """Writes every operation that the inputs reach on a tape, and finds the attention calls.

    The operations themselves run natively, with dropout off and running batch statistics. Nothing
    is patched: leaving the context undoes all.

    Args:
        keep: the kinds of operation whose operands the rules will want to see.
        names: dotted module names by the modules' identity.
        rules: change the gradient of some operations, for the methods that are gradients.
        edges: keep where every output stands in the autograd graph.

    Attributes:
        tape: what the inputs reach.
        calls: the attention calls among tokens.
        rules: what changes the gradient of operations.
    """

    def __init__(
        self,
        keep: frozenset[Kind] = frozenset(),
        names: dict[int, str] | None = None,
        rules: ForwardRules | None = None,
        *,
        edges: bool = False,
    ) -> None:
        super().__init__()
        self.tape = Tape(keep, lay_out)
        self._edges = edges
        self.calls: list[AttentionCall] = []
        self._names = names or {}
        self.rules = rules or {}

    def enter_input(self, tensor: Tensor) -> Value:
        """Makes a tensor an input of the trace."""
        value = self.tape.new_value(tensor)
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
        if function.kind is Kind.ASKS:
            return func(*args, **kwargs)
        if function.body is not None:
            with self:
                return function.body(*args, **kwargs)
        if function.kind is Kind.DROPOUT:
            return args[0] if args else kwargs["input"]
        func, args, kwargs = as_run(func, function, args, kwargs)
        operation = self._described(function, args, kwargs)
        traced = operation.traced()
        inplace = function.inplace or bool(operation.arguments.get("inplace"))
        if not traced and not self._attends_learned(function, operation.operands):
            for written in written_by(inplace, args, kwargs):
                self.tape.before_write(written)
            return func(*args, **kwargs)
        if function.kind is Kind.DATA:
            if "hook" in operation.arguments:
                return args[0].register_hook(that_only_looks(operation.arguments["hook"]))
            if "source" not in operation.arguments:
                # The same, but a write into it can be seen.
                return args[0].detach()
            raise UnseenOperationError(
                "The model assigns to `.data` of a tensor that depends on the inputs, which hides "
                "the dependence from autograd and from the trace. Use an ordinary in-place "
                "operation such as `tensor.copy_(...)`."
            )
        if traced and not torch.is_grad_enabled() and not traced[0][1].holds_ids:
            return self._cut_off(func, operation, args, kwargs, inplace=inplace)
        return self._run(func, operation, args, kwargs, inplace=inplace)

    def _cut_off(
        self,
        func: Callable[..., Any],
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        inplace: bool,
    ) -> Any:
        """Under ``torch.no_grad()`` what the model computes from the inputs is a constant."""
        for written in written_by(inplace, args, kwargs):
            if written.requires_grad and self.tape.held_by(written) is not None:
                raise UnseenOperationError(
                    f"`{operation.name}` writes into a tensor that depends on the inputs while "
                    "gradients are off (`torch.no_grad()`, or inside a custom "
                    "`autograd.Function`), so autograd does not know of it. Write it where "
                    "gradients are on, or into a copy."
                )
            self.tape.before_write(written)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result._is_view():
            self.tape.set_aside(operation, result)
        return result

    def _described(
        self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Operation:
        """The operation that a call is, before it runs."""
        operands: list[Operand] = []
        tape = self.tape
        find = tape.find if torch.is_grad_enabled() else tape.find_without_gradient

        def operand(tensor: Tensor) -> Operand:
            found = Operand(tensor, find(tensor))
            operands.append(found)
            return found

        frozen = mapped(operand, Tensor, args)
        named = mapped(operand, Tensor, kwargs) if kwargs else kwargs
        arguments = function.bind(frozen, named)
        for name, role in function.roles.items():
            for found in leaves(Operand, arguments.get(name)):
                found.role = role
        kind = kind_of(function, arguments)
        leave_out_constants(operands)
        index = len(self.tape.operations)
        return Operation(index, function, kind, frozen, named, operands, arguments, function.call)

    def _attends_learned(self, function: Function, operands: list[Operand]) -> bool:
        """Whether learned queries attend to each other (as in DETR)."""
        if function.kind not in (Kind.SOFTMAX, Kind.ATTENTION) or not torch.is_grad_enabled():
            return False
        return bool(operands) and operands[0].dtype.is_floating_point and len(operands[0].size) > 1

    def _run(
        self,
        func: Callable[..., Any],
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        inplace: bool,
    ) -> Any:
        function, kind, operands = operation.function, operation.kind, operation.operands
        written = next(written_by(inplace, args, kwargs), None)
        if inplace and not function.inplace:
            operation.call = without_inplace(func)
        if self._edges or kind in self.tape.keep or kind in _NAMED:
            operation.module = self._calling_module()
        if kind in _ATTENDS:
            operation.pattern = recognise(operation)
        pattern = operation.pattern
        result = self._by_rule(operation, written)
        keep = pattern is not None or kind in self.tape.keep or is_weighted(operation)
        self.tape.settle(operands, keep=keep)
        if written is not None:
            self.tape.before_write(written)
        if result is NotImplemented:
            result = func(*args, **kwargs)
        elif written is not None:
            result = written.copy_(result)
        if written is None and self.tape.held_by(result) is not None:
            return result
        if "running_mean" in operation.arguments and result.requires_grad:
            # On CPUs its derivative is wrong if the gradient is laid out otherwise: tokens first
            # as behind a convolutional stem, or channels last as of a spectrogram.
            result.register_hook(_LaidOut(result.stride()))
        if not operation.traced() or kind is Kind.EMBEDDING:
            result = with_gradient(result)
        outputs = reached(self.tape, operation, result if written is None else written)
        if not outputs:
            if written is not None:
                self.tape.release(written)
            return result
        beside = outputs[1:] if pattern is not None else []
        if pattern is not None:
            outputs = outputs[:1]
        if operation.refusal is not None:
            operation.refused = [get_gradient_edge(t) for t in outputs if t is not None]
        summed = weighted_sum(operation, result.ndim) if kind is Kind.SUM else None
        if summed is not None:
            operation, pattern, keep = summed, summed.pattern, True
            kind = operation.kind
        self.tape.append(operation, outputs)
        if outputs[0] is not None and (kind is Kind.EMBEDDING or (keep and kind is Kind.PRODUCT)):
            operation.result = self.tape.operand(outputs[0], None, keep=True)
        asked = self._edges or kind is Kind.EMBEDDING or pattern
        if asked and outputs[0] is not None and outputs[0].requires_grad:
            operation.edge = get_gradient_edge(outputs[0])
        if pattern is not None and outputs[0] is not None:
            self._add_call(operation, pattern, outputs[0])
            for tensor in beside:
                if tensor is not None:
                    held = list(pattern.held)
                    sums = self.tape.record(LOG_SUM_EXP, tuple(held), held, [tensor])
                    sums.refusal = log_sum_exp_is_used()
        if written is not None:
            self.tape.after_write(written)
        return result

    def _by_rule(self, operation: Operation, written: Tensor | None) -> Any:
        """The result under the method's rule; `NotImplemented` if it has none that applies."""
        rule, traced = self.rules.get(operation.kind), operation.traced()
        if rule is None or not traced or traced[0][1].holds_ids or not torch.is_grad_enabled():
            return NotImplemented
        if written is not None:
            # What autograd keeps of it must stay what it is.
            for operand in operation.operands:
                if operand.data is written:
                    operand.data = written.clone()
        return rule(operation)

    def _add_call(self, operation: Operation, pattern: Pattern, output: Tensor) -> None:
        layer, module = len(self.calls), self._calling_module()
        call: AttentionCall
        if operation.kind is Kind.ATTENTION:
            call = fused_attention(layer, module, operation)
            if hasattr(operation.call, ENTRY):
                require_described(call, output.detach())
        else:
            call = explicit_attention(layer, module, operation, pattern)
        operation.attention = call
        operation.result = self.tape.operand(output, None, keep=True)
        if call.among_channels:
            call.layer = -1
            return
        query = query_value(call)
        call.output.attention |= 1 << layer | (0 if query is None else query.attention)
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
        # A look at the names first: a frame's variables cost more.
        caller = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
        if isinstance(caller, nn.Module):
            yield caller
        if frame.f_back is None:
            return
        frame = frame.f_back
