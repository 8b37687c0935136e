"""The torch function mode that records a forward pass; calls are intercepted only here."""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from captum_transformer.calling.checkpointing import declared_by, saving_hooks
from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.attention import (
    AttentionCall,
    FusedAttention,
    attention_call,
)
from captum_transformer.trace.calls import (
    Call,
    as_run,
    lay_gradient_out,
    past_autograd,
    without_inplace,
)
from captum_transformer.trace.cuts import Blocks
from captum_transformer.trace.flex import log_sum_exp_is_used
from captum_transformer.trace.functions import ENTRY, LOG_SUM_EXP, Function, describe
from captum_transformer.trace.kinds import MOVES, Kind, Role
from captum_transformer.trace.known_weights import (
    LINEAR_MAPS,
    signal_of_wrapped,
    with_derivative,
)
from captum_transformer.trace.layout import lay_out
from captum_transformer.trace.lost_gradients import StepFunction, completed
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.pooling import pools_tokens
from captum_transformer.trace.reach import leave_out_constants, reached, with_gradient, written_by
from captum_transformer.trace.recognise import (
    Pattern,
    is_weighted,
    recognise,
    require_described,
    weighted_sum,
)
from captum_transformer.trace.step_functions import (
    MAY_STEP,
    Chosen,
    goes_straight_through,
    is_step,
    made_of_integers,
    of_integers,
    straight_through,
)
from captum_transformer.trace.steps import Step
from captum_transformer.trace.streams import query_value
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

_MAY_HOLD_TENSORS = (tuple, list, dict)
_MAY_BE_TENSORS = (Tensor, *_MAY_HOLD_TENSORS)
_HOLD_NONE = frozenset({int, float, bool, str, type(None), slice})
_ATTENTIONS = frozenset({Kind.SOFTMAX, Kind.ATTENTION})
_ATTENDS = frozenset({Kind.ATTENTION, Kind.PRODUCT})
# The module is recorded for these kinds, which rules may refuse, and for kinds whose operands are
# kept. Operations of other kinds are cheap and numerous.
_NAMED = frozenset(Kind) - MOVES - {Kind.COPY, Kind.MUL, Kind.DIV} | {Kind.CONCATENATE, Kind.PAD}
# A rule changes how autograd sees an operation, never what the operation computes. It runs the
# operation out of place and returns the result, or `NotImplemented` to leave it as it is.
ForwardRule = Callable[[Operation], Any]
ForwardRules = Mapping[Kind, ForwardRule]


class Trace(TorchFunctionMode):
    """Records every operation that depends on the inputs on a tape, and finds attention calls.

    The operations themselves run natively, with dropout off and with the running statistics of
    batch normalisation. Nothing is patched, so exiting the context restores everything.

    Args:
        keep: the kinds of operations whose operands are kept for the rules.
        names: the dotted names of modules, by the ``id`` of the module.
        rules: the rules that change the gradient of some operations, for gradient-based methods.
        edges: whether to keep the position of every output in the autograd graph.
        checkpoint: the number of attention calls per block that is recomputed; see `Blocks`.

    Attributes:
        tape: the tape of operations that depend on the inputs.
        calls: the attention calls among tokens.
        rules: the rules that change the gradient of operations, by kind.
        blocks: the blocks that are recomputed in the backward pass.
        steps: the step functions that have run without a rule.
        on_draw: a function that is called when the model draws random numbers, or None.
    """

    def __init__(
        self,
        keep: frozenset[Kind] = frozenset(),
        names: dict[int, str] | None = None,
        rules: ForwardRules | None = None,
        *,
        edges: bool = False,
        checkpoint: int | None = None,
    ) -> None:
        super().__init__()
        self.tape = Tape(keep, lay_out)
        self.blocks = Blocks(self.tape, checkpoint)
        self.tape.on_record = self.blocks.note
        self._edges = edges
        self.calls: list[AttentionCall] = []
        self._names = names or {}
        self.rules = rules or {}
        self.steps: list[StepFunction] = []
        self._chosen = Chosen()
        self.on_draw: Callable[[], None] | None = None

    def enter_input(self, tensor: Tensor) -> Value:
        """Registers a tensor as an input of the trace, and returns its value."""
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
        if function.draws and self.on_draw is not None:
            self.on_draw()
        if function.kind is Kind.ASKS:
            result = func(*args, **kwargs)
            if function.answers and torch.is_grad_enabled():
                self._chosen.of_question(function.name, self.tape, (args, kwargs), result)
            return result
        if function.body is not None:
            if function.layer is None:
                with self:
                    return function.body(*args, **kwargs)
            func, args, kwargs = function.body, function.layer(*args, **kwargs), {}
            function = describe(func)
        if function.kind is Kind.DROPOUT:
            return args[0] if args else kwargs["input"]
        call = func, args, kwargs = as_run(func, function, args, kwargs)
        operation = self._described(function, args, kwargs)
        written = written_by(operation, args, kwargs)
        traced = operation.traced()
        if not traced and not _attends_learned(operation):
            for tensor in written:
                self.tape.before_write(tensor)
            result = func(*args, **kwargs)
            if self._chosen and torch.is_grad_enabled():
                step = self._chosen.passed_on(operation, result, written)
                if step is None:
                    return result
                stepped = self.__torch_function__(step[0], (), step[1])
                if not written:
                    return stepped
                return self.__torch_function__(torch.Tensor.copy_, (), (result, stepped))
            return result
        if function.kind is Kind.DATA:
            return past_autograd(operation, *args)
        if traced and not torch.is_grad_enabled() and not traced[0][1].holds_ids:
            return self._cut_off(operation, written, call)
        return self._run(operation, written[0] if written else None, call)

    def _described(
        self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Operation:
        """Returns the operation for a call that has not run yet."""
        operands: list[Operand] = []
        find = self.tape.find if torch.is_grad_enabled() else self.tape.find_without_gradient
        by_place, by_name, roles = list(args), kwargs, function.roles
        last = len(roles) - 1
        for place, argument in enumerate(args):
            if type(argument) in _HOLD_NONE:
                continue
            role = roles[place if place < last else last]
            if isinstance(argument, Tensor):
                by_place[place] = operand = Operand(argument, find(argument), role)
                operands.append(operand)
            elif isinstance(argument, _MAY_HOLD_TENSORS):
                by_place[place] = _with_operands(argument, role, find, operands)
        if kwargs:
            by_name = kwargs.copy()
            for name, argument in kwargs.items():
                if isinstance(argument, _MAY_BE_TENSORS):
                    role = function.role_of(name)
                    by_name[name] = _with_operands(argument, role, find, operands)
        arguments = function.bind(given := tuple(by_place), by_name)
        kind = function.kind if function.kind_by is None else function.kind_by(arguments)
        leave_out_constants(operands)
        index = len(self.tape.operations)
        return Operation(index, function, kind, given, by_name, operands, arguments)

    def _cut_off(self, operation: Operation, written: Sequence[Tensor], call: Call) -> Any:
        """Runs a call under ``torch.no_grad()``, whose result is a constant for the trace."""
        for tensor in written:
            if tensor.requires_grad and self.tape.held_by(tensor) is not None:
                raise UnseenOperationError(
                    f"`{operation.name}` writes into a tensor that depends on the inputs while "
                    "gradients are off (`torch.no_grad()`, or inside a custom "
                    "`autograd.Function`), so autograd does not know of it. Write it where "
                    "gradients are on, or into a copy."
                )
            self.tape.before_write(tensor)
        func, args, kwargs = call
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result._is_view():
            self.tape.set_aside(operation, result)
        return result

    def _run(self, operation: Operation, written: Tensor | None, call: Call) -> Any:
        (func, args, kwargs), tape, kind = call, self.tape, operation.kind
        if operation.arguments.get("inplace"):
            operation.call = without_inplace(func)
        if self._edges or kind in tape.keep or kind in _NAMED:
            operation.module = self._calling_module()
        if kind in _ATTENDS:
            operation.pattern = recognise(operation)
        wrapped = signal_of_wrapped(operation) if kind in LINEAR_MAPS else None
        hooks, step = saving_hooks(True), None  # noqa: FBT003 - it takes no name
        if hooks is not None or self.blocks.is_on:
            step = self.blocks.begin(operation, written, declared_by(hooks))
        result: Any = NotImplemented
        steps = kind in MAY_STEP and is_step(operation)
        whole = completed(operation)
        if kind in self.rules:
            result = self._by_rule(self.rules[kind], operation, written, step)
        if steps and result is NotImplemented and goes_straight_through(operation):
            result = self._by_rule(straight_through, operation, written, step)
        pools = pools_tokens(operation)
        keep = pools or operation.pattern is not None or kind in tape.keep
        keep = keep or (kind is Kind.MUL and is_weighted(operation))
        tape.settle(operation.operands, keep=keep)
        if written is not None:
            tape.before_write(written)
        by_rule = result is not NotImplemented
        if not by_rule:
            result = func(*args, **kwargs) if step is None else step.run(func, *args, **kwargs)
            if wrapped is not None and written is None:
                result = with_derivative(operation, wrapped, result)
        elif written is not None:
            result = written.copy_(result)
        if written is None and tape.held_by(result) is not None:
            return result
        if kind is Kind.NORM:
            lay_gradient_out(operation, result)
        if kind is Kind.EMBEDDING or not operation.traced():
            result = with_gradient(result)
        given = result if written is None else written
        if steps and func is made_of_integers:
            operation.refusal = of_integers(operation)
        outputs = reached(tape, operation, given, by_rule=by_rule)
        some_lost = not outputs or (len(outputs) > 1 and any(o is None for o in outputs))
        if some_lost and not by_rule:  # rules hold outputs constant on purpose
            self._chosen.of_signals(operation, self._calling_module(), result)
        if outputs:
            if steps and not by_rule and outputs[0] is not None and outputs[0].requires_grad:
                self.steps.append(StepFunction(operation, get_gradient_edge(outputs[0])))
            if whole is not None and outputs[0] is not None and outputs[0].requires_grad:
                self.steps.append(whole.step(operation, outputs[0]))
            recorded = self._write_down(operation, outputs, keep=keep, pools=pools)
            if step is not None:
                self.blocks.add(step, recorded)
        if written is not None:
            if outputs:
                tape.after_write(written)
            else:
                tape.release(written)
        return result

    def _by_rule(
        self, rule: ForwardRule, operation: Operation, written: Tensor | None, step: Step | None
    ) -> Any:
        """Returns the result of a rule, or `NotImplemented` if the rule doesn't apply."""
        traced = operation.traced()
        if not traced or traced[0][1].holds_ids:
            return NotImplemented
        if written is not None:
            # The tensor that autograd saves must not be changed by the write.
            for operand in operation.operands:
                if operand.data is written:
                    operand.data = written.clone()
        return rule(operation) if step is None else step.run_by(rule)

    def _write_down(
        self, operation: Operation, outputs: list[Tensor | None], *, keep: bool, pools: bool
    ) -> Operation:
        """Records an operation that has run on the tape, with everything that rules need of it.

        Returns:
            The operation that was recorded for it.
        """
        # The further outputs of attention are recorded separately.
        kept = len(outputs) if operation.pattern is None else 1
        first, beside, outputs = outputs[0], outputs[kept:], outputs[:kept]
        if operation.refusal is not None:
            operation.refused = [get_gradient_edge(t) for t in outputs if t is not None]
        if operation.kind is Kind.SUM and first is not None:
            summed = weighted_sum(operation, first.ndim)
            if summed is not None:
                operation, keep = summed, True
        self.tape.append(operation, outputs)
        if first is None:
            return operation
        kind, pattern = operation.kind, operation.pattern
        if kind is Kind.EMBEDDING or (keep and kind is Kind.PRODUCT):
            operation.result = self.tape.operand(first, None, keep=True)
        asked = self._edges or kind is Kind.EMBEDDING or pattern or pools
        if asked and first.requires_grad:
            operation.edge = get_gradient_edge(first)
        if pattern is not None:
            self._add_call(operation, pattern, first)
            for tensor in beside:
                if tensor is not None:
                    held = list(pattern.held)
                    sums = self.tape.record(LOG_SUM_EXP, tuple(held), held, [tensor])
                    sums.refusal = log_sum_exp_is_used()
        return operation

    def _add_call(self, operation: Operation, pattern: Pattern, output: Tensor) -> None:
        call = operation.attention = attention_call(len(self.calls), operation, pattern)
        if isinstance(call, FusedAttention) and hasattr(operation.call, ENTRY):
            require_described(call, output.detach())
        operation.result = self.tape.operand(output, None, keep=True)
        if call.among_channels:
            call.layer = -1
            return
        query = query_value(call)
        call.output.attention |= 1 << call.layer | (0 if query is None else query.attention)
        self.calls.append(call)

    def _calling_module(self) -> str:
        """Returns the name of the module whose forward pass called a torch function."""
        frame: FrameType | None = sys._getframe(3)
        while frame is not None:
            # Check the names first, since reading a frame's variables is slower.
            if "self" in frame.f_code.co_varnames[:1]:
                caller = frame.f_locals.get("self")
                if isinstance(caller, nn.Module):
                    return self._names.get(id(caller)) or type(caller).__name__
            frame = frame.f_back
        return ""

    def clear(self) -> None:
        """Releases everything that the trace has recorded."""
        self.blocks.clear()
        self.tape.clear()
        self.calls.clear()
        self.steps.clear()
        self._chosen.clear()


def _with_operands(
    argument: Any,
    role: Role,
    find: Callable[[Tensor], Value | None],
    operands: list[Operand],
) -> Any:
    """Replaces each tensor in an argument by an operand, and appends these to ``operands``."""

    def operand(tensor: Tensor) -> Operand:
        new = Operand(tensor, find(tensor), role)
        operands.append(new)
        return new

    return mapped(operand, Tensor, argument)


def _attends_learned(operation: Operation) -> bool:
    """Whether learned queries attend to each other (as in DETR)."""
    operands = operation.operands
    if operation.function.kind not in _ATTENTIONS or not torch.is_grad_enabled():
        return False
    if any(torch._C._functorch.is_batchedtensor(operand.given) for operand in operands):
        # Tensors inside `torch.vmap` differ from those outside, where the result is refused.
        return False
    return bool(operands) and operands[0].dtype.is_floating_point and len(operands[0].size) > 1
