"""A block of a forward pass that is run again when a backward pass reaches it.

Only what a block reads from earlier blocks stays in memory. What autograd saved for its operations,
and what they keep for rules, is recomputed from the tape: each operation runs as it was recorded,
on the results of the operations before it, under the same rule. No code of the model runs twice, so
it does not draw, count or store anything twice.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor

from captum_transformer.trace.operation import Operand
from captum_transformer.trace.steps import Saved, Step, as_was
from captum_transformer.trace.value import Value


class Block:
    """Operations that are run again together.

    Args:
        steps: the operations, in order.
        inputs: the values from before the block that they read, with an operand for each.
        enter: called before the block runs again and takes another block's place in memory.

    Attributes:
        place: the index of its first operation on the tape.
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
        """Releases what rules need of a step, since it can be recomputed."""
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
        """Returns the steps that must run again, each with the values that no later step reads."""
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
        """Returns a tensor that autograd saved for a step, recomputed."""
        if self._made is None:
            self._run(saving=True)
        if self._made is None:
            raise RuntimeError("a block that has run again has what autograd saves")
        return saved.among(self._made[saved.step])

    def bring_back(self) -> None:
        """Recomputes what the operations keep for rules, unless it is in memory."""
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
        """Releases what autograd saves, once it has been used."""
        self._made = None

    def leave(self) -> None:
        """Releases everything that was recomputed."""
        self._made, self._is_here = None, False
        for operands in self._kept.values():
            for operand in operands:
                operand.data = None

    def clear(self) -> None:
        """Forgets everything: steps and blocks refer to each other."""
        vars(self).clear()
