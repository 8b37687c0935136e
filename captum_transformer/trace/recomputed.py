"""A block of a forward pass that is run again when a backward pass comes to it.

Of a block only what it reads of earlier ones stays in memory. What autograd has saved of its
operations, and what they keep for rules, is made again from the tape: each operation runs as it was
described, on what the operations before it give, under the rule that it ran under. No code of the
model runs twice, so nothing that it draws, counts or stores happens twice.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor

from captum_transformer.trace.operation import Operand
from captum_transformer.trace.steps import Saved, Step, as_was
from captum_transformer.trace.value import Value


class Block:
    """Operations that are run again together.

    Args:
        steps: the operations, in their order.
        inputs: what they read of what was there before.
        enter: called before it runs again, when it takes another block's place in memory.

    Attributes:
        place: the first of the operations on the tape.
    """

    def __init__(
        self,
        steps: list[Step],
        inputs: dict[Value, Operand],
        enter: Callable[["Block"], None],
    ) -> None:
        self._enter, self._inputs = enter, inputs
        self.place = steps[0].recorded.index
        self._kept: dict[Value, list[Operand]] = {}
        self._made: dict[Step, list[Tensor]] | None = None
        self._is_here = False
        known = inputs.keys() | {value for step in steps for value in step.outputs()}
        for step in steps:
            step.block = self
            for reference in step.saved:
                if (saved := reference()) is not None:
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
        return saved.among(self._made[saved.step])

    def bring_back(self) -> None:
        """Brings back what the operations keep for rules."""
        if not self._is_here:
            self._run(saving=False)

    def _run(self, *, saving: bool) -> None:
        self._enter(self)
        made: dict[Step, list[Tensor]] = {}
        tensors = {value: operand.given for value, operand in self._inputs.items()}
        self._bring(tensors)
        for step, ends in self._steps:
            saved = made.setdefault(step, []) if saving else None
            results = step.again(tensors, saved)
            found = {
                value: as_was(result, value)
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

    def spent(self) -> None:
        """Lets go of what autograd saves, which has been used."""
        self._made = None

    def leave(self) -> None:
        """Lets go of all that was run again."""
        self._made, self._is_here = None, False
        for operands in self._kept.values():
            for operand in operands:
                operand.data = None

    def clear(self) -> None:
        """Forgets everything: steps and blocks refer to each other."""
        vars(self).clear()
