"""The torch function mode that records a forward pass; calls are intercepted only here."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.calls import Call, as_run, past_autograd
from captum_transformer.trace.describing import (
    attends_learned,
    declared_writes,
    described,
    written_by,
)
from captum_transformer.trace.functions import Function, describe
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.products import written_out
from captum_transformer.trace.recorder import Recorder
from captum_transformer.trace.value import Value

_ASKS, _DROPOUT, _DATA, _UNKNOWN = Kind.ASKS, Kind.DROPOUT, Kind.DATA, Kind.UNKNOWN


class Trace(TorchFunctionMode):
    """Records every operation that depends on the inputs on a tape, and finds attention calls.

    The operations themselves run natively, with dropout off and with the running statistics of
    batch normalisation. Nothing is patched, so exiting the context restores everything.

    Args:
        recorder: runs and records the operations; None for one without rules.

    Attributes:
        tape, calls, rules, blocks, steps: those of the `Recorder`.
        on_draw: a function that is called when the model draws random numbers, or None.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        super().__init__()
        self._recorder = known = recorder or Recorder()
        self.tape, self.blocks, self._chosen = known.tape, known.blocks, known.chosen
        self.calls, self.rules, self.steps = known.calls, known.rules, known.steps
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
        if function.kind is _ASKS:
            return self._asked(func, function, args, kwargs)
        if function.body is not None:
            if function.layer is None:
                with self:
                    return function.body(*args, **kwargs)
            func, args, kwargs = function.body, function.layer(*args, **kwargs), {}
            function = describe(func)
        if function.kind is _DROPOUT:
            return args[0] if args else kwargs["input"]
        call = func, args, kwargs = as_run(func, function, args, kwargs)
        operation = described(self.tape, function, args, kwargs)
        written = written_by(operation, args, kwargs)
        if function.kind is _UNKNOWN:
            for tensor in declared_writes(func, args, kwargs):
                self.tape.before_write(tensor)
        traced = operation.traced()
        if not traced and not attends_learned(operation):
            return self._constant(operation, written, call)
        if function.kind is _DATA:
            return past_autograd(operation, *args)
        if traced and not torch.is_grad_enabled() and not traced[0][1].holds_ids:
            return self._cut_off(operation, written, call)
        if (simpler := written_out(operation)) is not None:
            return simpler(self)
        return self._recorder.run(operation, written[0] if written else None, call)

    def _asked(
        self,
        func: Callable[..., Any],
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Runs a call that reads shapes, types or truth values."""
        result = func(*args, **kwargs)
        if function.answers and torch.is_grad_enabled():
            self._chosen.of_question(function.name, self.tape, (args, kwargs), result)
        return result

    def _constant(self, operation: Operation, written: Sequence[Tensor], call: Call) -> Any:
        """Runs a call that no input reaches, unless through integers that were made of signals."""
        func, args, kwargs = call
        for tensor in written:
            self.tape.before_write(tensor)
        result = func(*args, **kwargs)
        if not self._chosen or not torch.is_grad_enabled():
            return result
        step = self._chosen.passed_on(operation, result, written)
        if step is None:
            return result
        stepped = self.__torch_function__(step[0], (), step[1])
        if not written:
            return stepped
        return self.__torch_function__(torch.Tensor.copy_, (), (result, stepped))

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

    def clear(self) -> None:
        """Releases everything that the trace has recorded."""
        self._recorder.clear()
