"""Where the blocks of a forward pass end that are run again, and which of them is in memory."""

from typing import NamedTuple

from torch import Tensor

from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.recomputed import Block
from captum_transformer.trace.steps import Step
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value


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
        """An operation that the tape adds, such as the record of a write into a view."""
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
            self._blocks.append(Block(steps, inputs, self.enter))
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

    def places(self) -> list[int]:
        """Where on the tape blocks begin."""
        return [block.place for block in self._blocks]

    def enter(self, block: Block) -> None:
        """Leaves the block that is in memory, for another one."""
        if self._here is not None:
            self._here.leave()
        self._here = block

    def spent(self) -> None:
        """Lets go of what autograd saves of the block that is in memory."""
        if self._here is not None:
            self._here.spent()

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
