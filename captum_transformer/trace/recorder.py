"""Runs the operations of a forward pass, and writes down what rules need to know about them."""

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from captum_transformer.calling.checkpointing import declared_by, saving_hooks
from captum_transformer.calling.uncompiled import written_name
from captum_transformer.trace.attention import AttentionCall, FusedAttention, attention_call
from captum_transformer.trace.calls import Call, lay_gradient_out, without_inplace
from captum_transformer.trace.cuts import Blocks
from captum_transformer.trace.flex import log_sum_exp_is_used
from captum_transformer.trace.functions import ENTRY, LOG_SUM_EXP
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.known_weights import (
    LINEAR_MAPS,
    signal_of_wrapped,
    with_derivative,
)
from captum_transformer.trace.layers_of_entries import layer_of_entries
from captum_transformer.trace.layout import lay_out
from captum_transformer.trace.lost_gradients import StepFunction, completed
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.pooling import pools_tokens
from captum_transformer.trace.products import repeats_signal
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.reach import reached, with_gradient
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
from captum_transformer.trace.tape import Tape

_ATTENDS = frozenset({Kind.ATTENTION, Kind.PRODUCT})
_EMBEDDING, _NORM = Kind.EMBEDDING, Kind.NORM
_MUL, _PRODUCT = Kind.MUL, Kind.PRODUCT
_REDUCES = frozenset({Kind.SUM, Kind.MEAN})
# The module is recorded for these kinds, which rules may refuse, and for kinds whose operands are
# kept. Operations of other kinds are cheap and numerous.
_NAMED = frozenset(Kind) - MOVES - {Kind.COPY, Kind.MUL, Kind.DIV} | {Kind.CONCATENATE, Kind.PAD}
# A rule changes how autograd sees an operation, never what the operation computes. It runs the
# operation out of place and returns the result, or `NotImplemented` to leave it as it is.
ForwardRule = Callable[[Operation], Any]
ForwardRules = Mapping[Kind, ForwardRule]


class Recorder:
    """Runs operations that depend on the inputs, under a rule if there is one, and records them.

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
        chosen: the integers and truth values that were made of signals.
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
        self.tape = Tape(keep, lay_out)
        self.blocks = Blocks(self.tape, checkpoint)
        self.tape.on_record = self.blocks.note
        self.calls: list[AttentionCall] = []
        self.rules = rules or {}
        self.steps: list[StepFunction] = []
        self.chosen = Chosen()
        self._names = names or {}
        self._edges = edges

    def run(self, operation: Operation, written: Tensor | None, call: Call) -> Any:
        """Runs an operation and records it; returns what the model's call returns.

        Args:
            operation: the description of the call.
            written: the tensor that it writes into, or None.
            call: the function and its arguments.
        """
        (func, args, kwargs), tape, kind = call, self.tape, operation.kind
        traced = operation.traced()
        if operation.asks_to_write:
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
        whole = completed(operation) if len(traced) > 1 else None
        if kind in self.rules:
            result = self._by_rule(self.rules[kind], operation, written, step)
        if steps and result is NotImplemented and goes_straight_through(operation):
            result = self._by_rule(straight_through, operation, written, step)
        pools = pools_tokens(operation)
        keep = pools or operation.pattern is not None or kind in tape.keep
        keep = keep or (kind is _MUL and (is_weighted(operation) or repeats_signal(operation)))
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
        if kind is _NORM:
            lay_gradient_out(operation, result)
        of_ids = bool(traced) and traced[0][1].holds_ids
        if kind is _EMBEDDING or not traced or (of_ids and isinstance(result, Tensor)):
            result = with_gradient(result)
        given = result if written is None else written
        if steps and func is made_of_integers:
            operation.refusal = of_integers(operation)
        outputs = reached(tape, operation, given, by_rule=by_rule)
        some_lost = not outputs or (len(outputs) > 1 and any(o is None for o in outputs))
        if some_lost and not by_rule:  # rules hold outputs constant on purpose
            self.chosen.of_signals(operation, self._calling_module(), result)
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
        first = outputs[0]
        beside: list[Tensor | None] = []
        if operation.pattern is not None:  # its further outputs are recorded separately
            beside, outputs = outputs[1:], outputs[:1]
        if operation.refusal is not None:
            operation.refused = [get_gradient_edge(t) for t in outputs if t is not None]
        if operation.kind in _REDUCES and first is not None:
            summed = weighted_sum(operation, first.ndim) or layer_of_entries(operation, first.ndim)
            if summed is not None and all(operand.is_kept for operand in summed.operands):
                operation, keep = summed, True
        self.tape.append(operation, outputs)
        if first is None:
            return operation
        kind, pattern = operation.kind, operation.pattern
        if kind is _EMBEDDING or (keep and kind is _PRODUCT):
            operation.result = self.tape.operand(first, None, keep=True)
        asked = self._edges or kind is _EMBEDDING or pattern or pools
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
                    name = self._names.get(id(caller), "")
                    return written_name(name) or type(caller).__name__
            frame = frame.f_back
        return ""

    def clear(self) -> None:
        """Releases everything that has been recorded."""
        self.blocks.clear()
        self.tape.clear()
        self.calls.clear()
        self.steps.clear()
        self.chosen.clear()
