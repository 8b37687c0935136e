"""Blocks of a forward pass that are run again when a backward pass comes to them.

Of a block only what it reads of earlier ones stays in memory. What autograd has saved of its
operations, and what they keep for rules, is made again from the tape: each operation runs as it was
described, on what the operations before it give, under the rule that it ran under. No code of the
model runs twice, so nothing that it draws, counts or stores happens twice.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from captum_transformer.errors import ExplanationError
from captum_transformer.trace.functions import ENTRY
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operand, Operation
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
        keep: whether what it reads is kept for rules.
        recorded: what stands for it on the tape.
        block: the block that it is in, once that is left.
    """

    block: "Block"

    def __init__(self, operation: Operation, *, keep: bool = False) -> None:
        self.operation = self.recorded = operation
        self.saved: list[Saved] = []
        self.by_rule: Rule | None = None
        self.keep = keep
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
        shared: the block of the forward pass that is in memory now, if any is.
    """

    def __init__(self, steps: list[Step], shared: "Blocks") -> None:
        self._shared = shared
        self._inputs: dict[Value, Operand] = {}
        self._kept: dict[Value, list[Operand]] = {}
        self._made: dict[Step, list[Tensor]] | None = None
        self._is_here = False
        produced = {v for step in steps for v in step.outputs()}
        for step in steps:
            step.block = self
            for operand, value in step.operation.traced():
                if value not in produced:
                    self._inputs.setdefault(value, operand)
            for saved in step.saved:
                saved.tensor = None
        stay = set(self._inputs.values())
        for step in steps:
            self._let_go(step, produced, stay)
        self._steps = list(self._needed(steps))

    def _let_go(self, step: Step, produced: set[Value], stay: set[Operand]) -> None:
        """Lets go of what a step reads and makes; what rules want can be had again."""
        operation, recorded = step.operation, step.recorded
        known = produced | self._inputs.keys()
        for operand, value in (*operation.traced(), *recorded.traced()):
            if operand in stay or operand.data is None or value not in known:
                continue
            operand.data = None
            if step.keep or recorded is not operation:
                self._kept.setdefault(value, []).append(operand)
                operand.again = self.bring_back
        output = recorded.outputs[0] if recorded.outputs else None
        if recorded.result is not None and output is not None:
            recorded.result.data = None
            self._kept.setdefault(output, []).append(recorded.result)
            recorded.result.again = self.bring_back

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


class Blocks:
    """The blocks of a forward pass: at most one of them is in memory, and the end of the pass.

    Args:
        layers: how many attention calls make a block; None if only the model itself says what is
            run again.

    Attributes:
        is_on: whether the operations that run now are to be run again.
    """

    def __init__(self, layers: int | None = None) -> None:
        self._layers = layers
        self.is_on = layers is not None
        self._open: list[Step] = []
        self._calls: list[int] = []
        self._blocks: list[Block] = []
        self._here: Block | None = None
        self._declared: object = None
        self._ended = False

    def begin(self, operation: Operation, declared: object) -> Step | None:
        """An operation that is about to run; None if it is in no block.

        Args:
            operation: the operation.
            declared: what stands for the part of the model that it is in and that the model itself
                wants to run again, if it is in one.
        """
        if self._layers is None and declared is not self._declared and not self._ended:
            self._close(len(self._open))
            self._declared, self.is_on = declared, declared is not None
        return Step(operation) if self.is_on else None

    def add(self, step: Step, recorded: Operation, *, keep: bool) -> None:
        """An operation that has run, and what stands for it on the tape."""
        step.recorded, step.keep = recorded, keep
        self._open.append(step)
        if self._layers is None or recorded.pattern is None:
            return
        self._calls.append(len(self._open) - 1)
        if len(self._calls) > self._layers:
            self._close(narrowest(self._open, *self._calls[-2:]))

    def note(self, recorded: Operation) -> None:
        """An operation of the tape's own, such as one that tells of a write into a view."""
        if self.is_on:
            self._open.append(Step(recorded))

    def end(self) -> None:
        """Says that the forward pass has come to its end, from where the backward pass begins."""
        if self._ended:
            return
        if self._declared is not None:
            self._close(len(self._open))
        elif self._calls:
            self._close(narrowest(self._open, self._calls[-1], len(self._open)))
        for step in self._open:
            for operand, _ in () if step.keep else step.operation.traced():
                operand.data = None
        self._open.clear()
        self._declared, self._ended, self.is_on = None, True, False

    def _close(self, count: int) -> None:
        """Makes a block of the first operations that are in none."""
        steps, self._open = self._open[:count], self._open[count:]
        self._calls = [place - count for place in self._calls if place >= count]
        if steps:
            self._blocks.append(Block(steps, self))

    def enter(self, block: Block) -> None:
        """Leaves the block that is in memory, for another one."""
        self.leave()
        self._here = block

    def leave(self) -> None:
        """Lets go of what was run again."""
        if self._here is not None:
            self._here.leave()
        self._here = None

    def clear(self) -> None:
        """Forgets everything."""
        for block in self._blocks:
            block.clear()
        self._blocks.clear()
        self._open.clear()
        self._declared = self._here = None


def narrowest(steps: Sequence[Step], after: int, last: int) -> int:
    """Before which step the fewest numbers go on to the later ones, of those that read and hold.

    Args:
        steps: what has run.
        after: the place of a step before the cut.
        last: the last place of a cut.
    """
    made: dict[Value, int] = {}
    read: dict[Value, int] = {}
    for place, step in enumerate(steps):
        read |= {value: place for _, value in step.operation.traced()}
        made |= dict.fromkeys(step.outputs(), place)
    grows = [0] * (len(steps) + 2)
    for value, place in made.items():
        # Whatever the model still holds it may read.
        end = len(steps) if value.holder() is not None else read.get(value, place)
        size = value.shape.numel() * value.dtype.itemsize
        grows[place + 1] += size
        grows[end + 1] -= size
    best, least, crossing = last, None, 0
    for place, more in enumerate(grows[: last + 1]):
        crossing += more
        if place > after and (least is None or crossing <= least):
            best, least = place, crossing
    return best


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
