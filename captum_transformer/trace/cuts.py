"""Where the recomputed blocks of a forward pass end, and which of them is in memory."""

from typing import NamedTuple

from torch import Tensor

from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.recomputed import Block
from captum_transformer.trace.steps import Step
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value


class _Cut(NamedTuple):
    """A place where the open block may end.

    Attributes:
        place: the number of operations of the open block before the cut.
        size: the number of bytes of their outputs that the model still holds at the cut.
        held: the values that the model still holds, each with its operand.
    """

    place: int
    size: int
    held: dict[Value, Operand]


class Blocks:
    """The blocks of a forward pass that are recomputed in the backward pass.

    At most one block is in memory at a time, besides the end of the pass. Each block holds the
    requested number of attention calls. It ends between two attention calls, where the model holds
    the fewest bytes of what it has computed since the block began: in a Transformer, this is the
    residual stream between two layers.

    Args:
        tape: the tape of the forward pass.
        layers: the number of attention calls per block; None to recompute only what the model
            itself checkpoints.

    Attributes:
        is_on: whether the operations that run now will be recomputed.
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
        """Starts an operation that is about to run.

        Args:
            operation: the operation.
            written: the tensor that the operation writes into, or None.
            declared: identifies the checkpoint of the model that the operation is in, or None.

        Returns:
            The step that runs the operation, or None if the operation is in no block.
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
        """Keeps a tensor that is read in the block but wasn't made in it."""
        if value not in self._made and value not in self._inputs and not _is_stale(tensor, value):
            self._inputs[value] = self._tape.operand(tensor, value, keep=True)

    def add(self, step: Step, recorded: Operation) -> None:
        """Adds an operation that has run, and the operation that the tape recorded for it."""
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
        """Adds an operation that the tape itself records, for example after a write into a view."""
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
        """Moves the cut here if the model holds no more of the block's outputs than at the cut."""
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
        """Ends the forward pass: no further operations are added to blocks."""
        if self._ended:
            return
        if self._declared is not None:
            self._close(len(self._open), {})
        elif self._calls and self._cut is not None:
            self._close(self._cut.place, self._cut.held)
        self._forget()
        self._ended, self.is_on = True, False

    def _close(self, count: int, held: dict[Value, Operand]) -> None:
        """Makes a block of the first operations that are in no block yet.

        Args:
            count: the number of operations.
            held: the outputs of these operations that the model still holds.
        """
        steps, self._open, before = self._open[:count], self._open[count:], self._inputs
        made = {value for step in steps for value in step.outputs()}
        read = {value for step in steps for _, value in step.operation.traced()} - made
        inputs = {value: operand for value, operand in before.items() if value in read}
        # A write into a shared view may read a value that no longer exists. If so, no block is
        # made, and the operations are not recomputed.
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
        """Discards the cut, and releases the tensors that were kept only for it."""
        cut, self._cut = self._cut, None
        if cut is not None:
            self._let_go(cut.held)

    def _let_go(self, held: dict[Value, Operand]) -> None:
        """Releases the given tensors, except those that a block reads."""
        reading = self._inputs
        for value, operand in held.items():
            if operand not in self._reading and reading.get(value) is not operand:
                operand.data = None

    def _forget(self) -> None:
        """Forgets the operations that are in no block, which are not recomputed."""
        inputs, self._inputs = self._inputs, {}
        self._let_go(inputs)
        self._leave_cut()
        self._open, self._made, self._held = [], set(), []
        self._declared = None
        self._reading.clear()

    def places(self) -> list[int]:
        """Returns the positions on the tape where blocks begin."""
        return [block.place for block in self._blocks]

    def enter(self, block: Block) -> None:
        """Replaces the block that is in memory by another one."""
        if self._here is not None:
            self._here.leave()
        self._here = block

    def spent(self) -> None:
        """Releases the tensors that autograd saves for the block that is in memory."""
        if self._here is not None:
            self._here.spent()

    def clear(self) -> None:
        """Releases all blocks and tensors."""
        for block in self._blocks:
            block.clear()
        self._blocks.clear()
        self._forget()
        self._here = None


def _is_stale(tensor: Tensor, value: Value) -> bool:
    """Whether a tensor has been written into since it held a value."""
    return tensor._version != value.version
