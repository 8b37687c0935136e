"""The gradient at attention calls, from the last block of a model to the first.

A single backward pass would hold the gradient at all points at once, and what is computed from it
would need each block once more. Where blocks run again, the gradient is therefore computed block by
block, on demand: from the gradient at the values that later blocks read to the gradient at the
values that this block reads. A block is then brought into memory only once, for the gradient and
for everything that is computed from it.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.derivatives import derivatives
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value


class Seam:
    """A boundary between two blocks.

    Attributes:
        place: the number of operations before it.
        edges: the positions in the autograd graph of the values that are read across it; None if
            not all of them are known.
    """

    def __init__(self, place: int) -> None:
        self.place = place
        self.edges: dict[Value, GradientEdge] | None = {}


def seams(
    operations: Sequence[Operation],
    places: Sequence[int],
    inputs: Mapping[Value, GradientEdge | None],
) -> list[Seam]:
    """Returns the seams at which the gradient can be stopped, in order.

    All values that are read across a seam have known edges, and none is made from another one: the
    gradient at the earlier one would include the part through the later one, and the two parts
    could not be told apart.

    Args:
        operations: all operations of a forward pass.
        places: where its blocks begin, in order.
        inputs: the positions of its inputs in the autograd graph.
    """
    found = [Seam(place) for place in places]
    for operation in operations:
        last = bisect_right(places, operation.index)
        for _, value in operation.traced():
            made = value.operation
            # The seams after the operation that made the value, up to the one that reads it.
            first = 0 if made is None else bisect_right(places, made.index)
            if first >= last or value.holds_ids:
                continue
            edge = inputs.get(value) if made is None else _edge(made, value)
            for seam in found[first:last]:
                if edge is None:
                    seam.edges = None
                elif seam.edges is not None:
                    seam.edges[value] = edge
    return [seam for seam in found if seam.edges and _are_apart(seam.edges)]


def _are_apart(values: Collection[Value]) -> bool:
    """Whether none of the values was made from another one."""
    own = sum(1 << value.index for value in values)
    return not any(value.ancestors & own for value in values)


def _edge(made: Operation, value: Value) -> GradientEdge | None:
    return made.edge if made.outputs[0] is value else None


class GradientsInOrder(Mapping[AttentionCall, Tensor]):
    """The gradients at the outputs of attention calls, those of one block in memory at a time.

    Args:
        total: the tensor that is differentiated.
        calls: the attention calls.
        watched: further edges at which the gradient is wanted, each with the index of the
            operation that made it, or -1 for an input.
        seams: the seams at which the pass may stop, in order.
        operations: all operations of the forward pass.
        passed: called when the gradient has passed through a block.

    Attributes:
        leaving: called with the place of the seam before the pass goes beyond it.
        slopes: the gradients at the watched edges, as far as the pass has come.
        starts: how often the pass has started: it starts again if a released gradient is needed.
    """

    def __init__(
        self,
        total: Tensor,
        calls: Sequence[AttentionCall],
        watched: Sequence[tuple[GradientEdge, int]],
        seams: Sequence[Seam],
        operations: Sequence[Operation],
        passed: Callable[[], None],
    ) -> None:
        self._passed = passed
        self._total, self._calls, self._watched = total, calls, watched
        self._seams, self._operations = seams, operations
        self.leaving: Callable[[int], None] | None = None
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self._below = len(self._seams)  # how many seams have not been passed
        self._here: dict[AttentionCall, Tensor | None] = {}
        self._carried: Sequence[tuple[Any, Tensor | None]] = [(self._total, None)]
        self._is_done = False
        self.slopes: list[Tensor | None] = [None] * len(self._watched)

    def __iter__(self) -> Iterator[AttentionCall]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, call: AttentionCall) -> Tensor:
        if call not in self._here and call.operation.index >= self._place:
            self._start()  # asked for out of order, or once more
        while call not in self._here:
            self._go_on()
        gradient = self._here[call]
        if gradient is None:
            shape, total = call.output.shape, self._total
            return torch.zeros(shape, dtype=call.output.dtype, device=total.device)
        return gradient

    @property
    def _place(self) -> int:
        """The index of the first operation that the pass has reached."""
        if self._is_done:
            return 0
        above = self._below
        return self._seams[above].place if above < len(self._seams) else len(self._operations)

    def finish(self) -> Sequence[Tensor | None]:
        """Completes the pass and returns the gradients at all watched edges."""
        while not self._is_done:
            self._go_on()
        return self.slopes

    def _go_on(self) -> None:
        """Continues the pass to the next seam, or to the end."""
        above = self._place
        if self.leaving is not None and above < len(self._operations):
            self.leaving(above)
        self._here = {}
        self._below -= 1
        seam = self._seams[self._below] if self._below >= 0 else None
        self._is_done = seam is None
        low = 0 if seam is None else seam.place
        calls = [call for call in self._calls if low <= call.operation.index < above]
        watched = [i for i, (_, place) in enumerate(self._watched) if low <= place < above]
        watched += [i for i, (_, place) in enumerate(self._watched) if place < 0 and seam is None]
        crossing = [] if seam is None or seam.edges is None else list(seam.edges.values())
        points = [
            *(call.edge for call in calls),
            *(self._watched[i][0] for i in watched),
            *crossing,
        ]
        found: Sequence[Tensor | None] = ()
        if points and self._carried:
            carried, slopes = zip(*self._carried, strict=True)
            found = derivatives(carried, points, self._operations, slopes)
        self._passed()
        found = found or [None] * len(points)
        self._here = dict(zip(calls, found, strict=False))
        for number, slope in zip(watched, found[len(calls) :], strict=False):
            self.slopes[number] = slope
        ends = zip(crossing, found[len(points) - len(crossing) :], strict=True)
        self._carried = [(edge, slope) for edge, slope in ends if slope is not None]
