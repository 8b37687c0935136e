"""An operation as it ran, what autograd saved for it, and how it runs again."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from captum_transformer.calling import generators
from captum_transformer.errors import ExplanationError
from captum_transformer.trace.functions import ENTRY
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value

if TYPE_CHECKING:
    from captum_transformer.trace.recomputed import Block

Result = TypeVar("Result")
Rule = Callable[[Operation], Any]
Precision = tuple[str, torch.dtype | None]


class Saved:
    """A tensor that autograd saves for an operation, held until the block is left.

    Args:
        step: the operation as it ran.
        tensor: the tensor that is saved.
    """

    __slots__ = ("__weakref__", "known", "place", "step", "tensor", "version")

    def __init__(self, step: "Step", tensor: Tensor) -> None:
        self.step, self.place = step, len(step.saved)
        self.tensor: Tensor | None = tensor.detach()
        self.version = tensor._version
        self.known = _looks(tensor)

    def unpacked(self) -> Tensor:
        """Returns the tensor, recomputed if it was released."""
        tensor = self.tensor
        if tensor is None:
            return self.step.block.saved(self)
        if tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: [{self.known[1]} {list(self.known[0])}]"
            )
        return tensor

    def among(self, made: Sequence[Tensor]) -> Tensor:
        """Returns the tensor that takes its place when the operation runs again.

        Raises:
            ExplanationError: if the saved tensors are not like those of the forward pass.
        """
        if len(made) != len(self.step.saved) or _looks(made[self.place]) != self.known:
            _refuse_other(self, made)
        return made[self.place]


class Step:
    """An operation as it ran.

    Args:
        operation: the operation, before it runs.

    Attributes:
        saved: weak references to what autograd saved for it, in the order in which it was saved.
        by_rule: the rule that it ran under; None if it ran as the model called it.
        recorded: the operation that represents it on the tape.
        block: the block that it is in, set when the block is left.
    """

    block: "Block"

    def __init__(self, operation: Operation) -> None:
        self.operation = self.recorded = operation
        self.saved: list[weakref.ref[Saved]] = []
        self.by_rule: Rule | None = None
        signals = [operand for operand, _ in operation.traced()] or operation.operands
        self._precision = _precision(signals[0].device.type if signals else "cpu")
        self._trained = {
            operand
            for operand in operation.operands
            if operand.value is None and operand.data is not None and operand.data.requires_grad
        }
        # Nothing else that autograd differentiates draws random numbers once dropout is off.
        draws = operation.kind is Kind.UNKNOWN or hasattr(operation.call, ENTRY)
        self._generators = None
        if draws:
            self._generators = generators.states_of(o.device for o in operation.operands)

    def outputs(self) -> list[Value]:
        """Returns the values that it outputs."""
        return [value for value in self.recorded.outputs if value is not None]

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Runs the operation and records what autograd saves for it."""
        self.saved.clear()
        with saved_tensors_hooks(self._pack, Saved.unpacked):
            return function(*args, **kwargs)

    def run_by(self, rule: Rule) -> Any:
        """Runs the operation under a rule; returns `NotImplemented` if the rule does not apply."""
        result = self.run(rule, self.operation)
        if result is NotImplemented:
            self.saved.clear()
        else:
            self.by_rule = self.operation.rule or rule
        return result

    def _pack(self, tensor: Tensor) -> Saved:
        saved = Saved(self, tensor)
        self.saved.append(weakref.ref(saved))
        return saved

    def again(self, tensors: dict[Value, Tensor], saved: list[Tensor] | None) -> list[Any]:
        """Runs the operation once more.

        Args:
            tensors: the data of the values that it reads.
            saved: a list that receives what autograd saves for it.
        """
        operation = self.operation
        given = {o: _signal(tensors[value]) for o, value in operation.traced()}
        given |= {o: o.given.detach().requires_grad_() for o in self._trained}
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_in_precision(*self._precision))
            if self._generators is not None:
                stack.enter_context(_drawing_from(self._generators))
            if saved is not None:
                stack.enter_context(saved_tensors_hooks(_keeping(saved), as_it_is))
            if self.by_rule is None:
                result = operation.run(lambda o: given[o] if o in given else o.given)  # noqa: SIM401
            else:
                result = _under(self.by_rule, operation, given)
        return list(result) if isinstance(result, (tuple, list)) else [result]


def _refuse_other(saved: Saved, made: Sequence[Tensor]) -> NoReturn:
    step = saved.step
    raise ExplanationError(
        f"Run again, {step.operation.described} saves {list(map(_looks, made))} for the gradient, "
        f"and not {len(step.saved)} tensors, with {saved.known} at place {saved.place}, as in the "
        "forward pass: what it does depends on more than its arguments. Explain the model without "
        "`checkpoint`, and without checkpointing of its own."
    )


def _looks(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _keeping(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        tensors.append(tensor.detach())
        return tensors[-1]

    return pack


def as_it_is(tensor: Tensor) -> Tensor:
    """Returns the tensor: a hook of `saved_tensors_hooks` that saves or unpacks nothing else."""
    return tensor


def _signal(tensor: Tensor) -> Tensor:
    """Returns a detached tensor that requires a gradient if its dtype allows that."""
    tensor = tensor.detach()
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_() if differentiable else tensor


def as_was(result: Tensor, value: Value) -> Tensor:
    """Returns a result in its value's dtype and layout, as an in-place operation left them."""
    result = result.detach()
    if result.dtype != value.dtype:
        result = result.to(value.dtype)
    if result.stride() != value.stride:
        result = value.blank(value.dtype).copy_(result)
    return result


def _under(rule: Rule, operation: Operation, given: dict[Operand, Tensor]) -> Any:
    """Runs an operation under a rule, and restores what the rule changes on the operation."""
    before = {operand: operand.data for operand in given}
    note, refusal = operation.note, operation.refusal
    try:
        for operand, tensor in given.items():
            operand.data = tensor
        return rule(operation)
    finally:
        operation.note, operation.refusal = note, refusal
        for operand, data in before.items():
            operand.data = data


def _precision(device: str) -> Precision:
    """Returns the device type with its current autocast dtype, None if autocast is off."""
    on = torch.is_autocast_enabled(device)
    return device, torch.get_autocast_dtype(device) if on else None


def _in_precision(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    if _precision(device) == (device, dtype):
        return nullcontext()
    return torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False)


@contextmanager
def _drawing_from(states: Mapping[torch.device, Tensor]) -> Iterator[None]:
    with generators.kept(states):
        generators.put_back(states)
        yield
