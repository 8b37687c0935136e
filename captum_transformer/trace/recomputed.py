"""Blocks of a forward pass that are run again when a backward pass comes to them.

Of a block only what it reads of earlier ones stays in memory. What autograd has saved of its
operations, and what they keep for rules, is made again from the tape: each operation runs as it was
described, on what the operations before it give, under the rule that it ran under. No code of the
model runs twice, so nothing that it draws, counts or stores happens twice.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from captum_transformer.errors import ExplanationError
from captum_transformer.trace.functions import ENTRY
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

Result = TypeVar("Result")
Rule = Callable[[Operation], Any]
Precision = tuple[str, torch.dtype | None]


class Saved:
    """A tensor that autograd saves of an operation: it is held until the block is left.

    Args:
        step: the operation as it ran.
        tensor: what is saved.
    """

    __slots__ = ("known", "place", "step", "tensor", "version")

    def __init__(self, step: "Step", tensor: Tensor) -> None:
        self.step, self.place = step, len(step.saved)
        self.tensor: Tensor | None = tensor.detach()
        self.version = tensor._version
        self.known = _looks(tensor)

    def unpacked(self) -> Tensor:
        """The tensor, perhaps computed again."""
        tensor = self.tensor
        if tensor is None:
            return self.step.block.saved(self)
        if tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: [{self.known[1]} {list(self.known[0])}]"
            )
        return tensor


class Step:
    """An operation as it ran.

    Args:
        operation: the operation, before it runs.

    Attributes:
        saved: what autograd has saved of it, in the order in which it did.
        by_rule: the rule that it ran under; None if it ran as the model called it.
        recorded: what stands for it on the tape.
        block: the block that it is in, once that is left.
    """

    block: "Block"

    def __init__(self, operation: Operation) -> None:
        self.operation = self.recorded = operation
        self.saved: list[Saved] = []
        self.by_rule: Rule | None = None
        first = operation.operands[0].device.type if operation.operands else "cpu"
        self._precision = _precision(first)
        self._trained = {
            operand
            for operand in operation.operands
            if operand.value is None and operand.data is not None and operand.data.requires_grad
        }
        # Nothing else that autograd differentiates draws numbers once dropout is off.
        draws = operation.kind is Kind.UNKNOWN or hasattr(operation.call, ENTRY)
        self._generators = _generators(operation) if draws else None

    def outputs(self) -> list[Value]:
        """The values that came out."""
        return [value for value in self.recorded.outputs if value is not None]

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Runs the operation, noting what autograd saves of it."""
        self.saved.clear()
        with saved_tensors_hooks(self._pack, Saved.unpacked):
            return function(*args, **kwargs)

    def run_by(self, rule: Rule) -> Any:
        """Runs the operation under a rule; `NotImplemented` if that does not apply."""
        result = self.run(rule, self.operation)
        if result is NotImplemented:
            self.saved.clear()
        else:
            self.by_rule = self.operation.rule or rule
        return result

    def _pack(self, tensor: Tensor) -> Saved:
        saved = Saved(self, tensor)
        self.saved.append(saved)
        return saved

    def again(self, tensors: dict[Value, Tensor], saved: list[Tensor] | None) -> list[Any]:
        """Runs the operation once more.

        Args:
            tensors: what the values hold that it reads.
            saved: gets what autograd saves of it.
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
                stack.enter_context(saved_tensors_hooks(_keeping(saved), _as_it_is))
            if self.by_rule is None:
                result = operation.run(lambda o: given[o] if o in given else o.given)  # noqa: SIM401
            else:
                result = _under(self.by_rule, operation, given)
        return list(result) if isinstance(result, (tuple, list)) else [result]


class Block:
    """Operations that are run again together.

    Args:
        steps: the operations, in their order.
        inputs: what they read of what was there before.
        shared: says when another block takes its place in memory.
    """

    def __init__(self, steps: list[Step], inputs: dict[Value, Operand], shared: "Blocks") -> None:
        self._shared, self._inputs = shared, inputs
        self._kept: dict[Value, list[Operand]] = {}
        self._made: dict[Step, list[Tensor]] | None = None
        self._is_here = False
        known = inputs.keys() | {value for step in steps for value in step.outputs()}
        for step in steps:
            step.block = self
            for saved in step.saved:
                saved.tensor = None
            self._let_go(step, known)
        self._steps = list(self._needed(steps))

    def _let_go(self, step: Step, known: Collection[Value]) -> None:
        """Lets go of what rules want of a step: it can be had again."""
        recorded = step.recorded
        operands = dict(step.operation.traced())
        operands |= dict(recorded.traced())
        if recorded.result is not None and recorded.outputs[0] is not None:
            operands[recorded.result] = recorded.outputs[0]
        for operand, value in operands.items():
            if operand.data is not None and value in known:
                operand.data, operand.again = None, self.bring_back
                self._kept.setdefault(value, []).append(operand)

    def _needed(self, steps: Sequence[Step]) -> Iterator[tuple[Step, tuple[Value, ...]]]:
        """The steps that must run again, each with the values that none of the later ones reads."""
        wanted = set(self._kept)
        needed = []
        for step in reversed(steps):
            outputs = step.outputs()
            if step.saved or not wanted.isdisjoint(outputs):
                wanted.update(value for _, value in step.operation.traced())
                needed.append(step)
        last: set[Value] = set()
        ends = []
        for step in needed:
            seen = {*step.outputs(), *(value for _, value in step.operation.traced())}
            ends.append(tuple(seen - last))
            last |= seen
        return zip(needed[::-1], ends[::-1], strict=True)

    def saved(self, saved: Saved) -> Tensor:
        """What autograd has saved of a step."""
        if self._made is None:
            self._run(saving=True)
        if self._made is None:
            raise RuntimeError("a block that has run again has what autograd saves")
        made = self._made[saved.step]
        if len(made) != len(saved.step.saved) or _looks(made[saved.place]) != saved.known:
            _refuse_other(saved, made)
        return made[saved.place]

    def bring_back(self) -> None:
        """Brings back what the operations keep for rules."""
        if not self._is_here:
            self._run(saving=False)

    def _run(self, *, saving: bool) -> None:
        self._shared.enter(self)
        made: dict[Step, list[Tensor]] = {}
        tensors = {value: operand.given for value, operand in self._inputs.items()}
        self._bring(tensors)
        for step, ends in self._steps:
            saved = made.setdefault(step, []) if saving else None
            results = step.again(tensors, saved)
            found = {
                value: _as_was(result, value)
                for value, result in zip(step.recorded.outputs, results, strict=False)
                if value is not None
            }
            self._bring(found)
            tensors |= found
            for value in ends:
                tensors.pop(value, None)
        self._is_here = True
        if saving:
            self._made = made

    def _bring(self, tensors: dict[Value, Tensor]) -> None:
        for value in self._kept.keys() & tensors.keys():
            for operand in self._kept[value]:
                operand.data = tensors[value]

    def leave(self) -> None:
        """Lets go of all that was run again."""
        self._made, self._is_here = None, False
        for operands in self._kept.values():
            for operand in operands:
                operand.data = None

    def clear(self) -> None:
        """Forgets everything: steps and blocks refer to each other."""
        vars(self).clear()


class _Cut(NamedTuple):
    """Where a block may end: before the next operation.

    Attributes:
        place: how many operations are before it.
        size: how many bytes the model still holds there of what these have made.
        held: what that is.
    """

    place: int
    size: int
    held: dict[Value, Operand]


class Blocks:
    """The blocks of a forward pass: at most one of them is in memory, and the end of the pass.

    A block holds as many attention calls as are wanted. Between two of them it ends where the model
    holds the fewest numbers of what it has made since the block began: in a Transformer that is the
    residual stream, between two layers.

    Args:
        tape: the tape of the forward pass.
        layers: how many attention calls make a block; None if only the model itself says what is
            run again.

    Attributes:
        is_on: whether the operations that run now are to be run again.
    """

    def __init__(self, tape: Tape, layers: int | None = None) -> None:
        self._tape, self._layers = tape, layers
        self.is_on = layers is not None
        self._open: list[Step] = []
        self._inputs: dict[Value, Operand] = {}
        self._reading: set[Operand] = set()
        self._made: set[Value] = set()
        self._held: list[Value] = []
        self._calls = 0
        self._cut: _Cut | None = None
        self._blocks: list[Block] = []
        self._here: Block | None = None
        self._declared: object = None
        self._ended = False

    def begin(self, operation: Operation, written: Tensor | None, declared: object) -> Step | None:
        """An operation that is about to run; None if it is in no block.

        Args:
            operation: the operation.
            written: what it is to write into.
            declared: what stands for the part of the model that it is in and that the model itself
                wants to run again, if it is in one.
        """
        if self._layers is None and declared is not self._declared and not self._ended:
            self._close(len(self._open), {})
            self._declared, self.is_on = declared, declared is not None
        if not self.is_on:
            return None
        if self._calls:
            self._look()
        for operand, value in operation.traced():
            self._read(operand.given, value)
        base = None if written is None else written._base
        if base is not None and (under := self._tape.held_by(base)) is not None:
            self._read(base, under)
        return Step(operation)

    def _read(self, tensor: Tensor, value: Value) -> None:
        """Holds what is read and no operation of the block has made."""
        if value not in self._made and value not in self._inputs and not _is_stale(tensor, value):
            self._inputs[value] = self._tape.operand(tensor, value, keep=True)

    def add(self, step: Step, recorded: Operation) -> None:
        """An operation that has run, and what stands for it on the tape."""
        step.recorded = recorded
        self._append(step)
        if self._layers is None or recorded.pattern is None:
            return
        self._calls += 1
        if self._calls > self._layers and self._cut is not None:
            self._close(self._cut.place, self._cut.held)
            self._calls = 1
        self._leave_cut()

    def note(self, recorded: Operation) -> None:
        """An operation of the tape's own, such as one that tells of a write into a view."""
        if self.is_on:
            for _, value in recorded.traced():
                if (tensor := value.holder()) is not None:
                    self._read(tensor, value)
            self._append(Step(recorded))

    def _append(self, step: Step) -> None:
        self._open.append(step)
        self._made.update(step.outputs())
        self._held += step.outputs()

    def _look(self) -> None:
        """Sees how much the model holds of what it has made."""
        alive = [(value, value.holder()) for value in self._held]
        held = {v: t for v, t in alive if t is not None and not _is_stale(t, v)}
        self._held = list(held)
        size = sum(value.shape.numel() * value.dtype.itemsize for value in held)
        if self._cut is None or size <= self._cut.size:
            self._leave_cut()
            keep = self._tape.operand
            read = {value: keep(t, value, keep=True) for value, t in held.items()}
            self._cut = _Cut(len(self._open), size, read)

    def end(self) -> None:
        """Says that the forward pass has come to its end, from where the backward pass begins."""
        if self._ended:
            return
        if self._declared is not None:
            self._close(len(self._open), {})
        elif self._calls and self._cut is not None:
            self._close(self._cut.place, self._cut.held)
        self._forget()
        self._ended, self.is_on = True, False

    def _close(self, count: int, held: dict[Value, Operand]) -> None:
        """Makes a block of the first operations that are in none.

        Args:
            count: how many.
            held: what the model holds of what they have made.
        """
        steps, self._open, before = self._open[:count], self._open[count:], self._inputs
        made = {value for step in steps for value in step.outputs()}
        read = {value for step in steps for _, value in step.operation.traced()} - made
        inputs = {value: operand for value, operand in before.items() if value in read}
        # A write into a view that others see may read what is there no longer: it stays as it is.
        if steps and len(inputs) == len(read):
            self._blocks.append(Block(steps, inputs, self))
            self._reading.update(inputs.values())
        self._inputs, self._made, self._held = {}, set(), []
        for step in self._open:
            for _, value in step.operation.traced():
                if value not in self._made and (known := held.get(value) or before.get(value)):
                    self._inputs[value] = known
            self._made.update(step.outputs())
            self._held += step.outputs()
        self._let_go(before)

    def _leave_cut(self) -> None:
        """Lets go of what the model holds at a cut where no block ends."""
        cut, self._cut = self._cut, None
        if cut is not None:
            self._let_go(cut.held)

    def _let_go(self, held: dict[Value, Operand]) -> None:
        """Lets go of what no block reads."""
        reading = self._inputs
        for value, operand in held.items():
            if operand not in self._reading and reading.get(value) is not operand:
                operand.data = None

    def _forget(self) -> None:
        """The operations that are in no block stay as they are."""
        inputs, self._inputs = self._inputs, {}
        self._let_go(inputs)
        self._leave_cut()
        self._open, self._made, self._held = [], set(), []
        self._declared = None
        self._reading.clear()

    def enter(self, block: Block) -> None:
        """Leaves the block that is in memory, for another one."""
        if self._here is not None:
            self._here.leave()
        self._here = block

    def clear(self) -> None:
        """Forgets everything."""
        for block in self._blocks:
            block.clear()
        self._blocks.clear()
        self._forget()
        self._here = None


def _is_stale(tensor: Tensor, value: Value) -> bool:
    """Whether a tensor holds something else by now."""
    return tensor._version != value.version


def _refuse_other(saved: Saved, made: Sequence[Tensor]) -> NoReturn:
    step = saved.step
    raise ExplanationError(
        f"Run again, {step.operation.described} saves {list(map(_looks, made))} for the gradient, "
        f"and not {[one.known for one in step.saved]} as in the forward pass: what it does depends "
        "on more than its arguments. Explain the model without `checkpoint`, and without "
        "checkpointing of its own."
    )


def _looks(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _keeping(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        tensors.append(tensor.detach())
        return tensors[-1]

    return pack


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _signal(tensor: Tensor) -> Tensor:
    """A tensor in the place of one that has a gradient."""
    tensor = tensor.detach()
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_() if differentiable else tensor


def _as_was(result: Tensor, value: Value) -> Tensor:
    """A result in the precision and the layout that a write in place has left it in."""
    result = result.detach()
    if result.dtype != value.dtype:
        result = result.to(value.dtype)
    if result.stride() != value.stride:
        result = value.blank(value.dtype).copy_(result)
    return result


def _under(rule: Rule, operation: Operation, given: dict[Operand, Tensor]) -> Any:
    """The result of an operation under a rule, which leaves nothing at the operation this time."""
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
    """The precision in which operations run on a kind of device now, if it is not their own."""
    on = torch.is_autocast_enabled(device)
    return device, torch.get_autocast_dtype(device) if on else None


def _in_precision(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    if _precision(device) == (device, dtype):
        return nullcontext()
    return torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False)


def _generators(operation: Operation) -> dict[torch.device | None, Tensor]:
    """Where the random numbers of an operation begin."""
    states: dict[torch.device | None, Tensor] = {None: torch.get_rng_state()}
    for device in _devices(operation.operands):
        states[device] = torch.get_device_module(device).get_rng_state(device)
    return states


def _devices(operands: Iterable[Operand]) -> set[torch.device]:
    return {operand.device for operand in operands if operand.device.type not in ("cpu", "meta")}


@contextmanager
def _drawing_from(states: dict[torch.device | None, Tensor]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device, state in states.items():
            if device is None:
                torch.set_rng_state(state)
            else:
                stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
                torch.get_device_module(device).set_rng_state(state, device)
        yield
