"""Towers that lie side by side along the samples' dimension, as several views of one input do.

An attention call of all of them is one call of the model, and one source of the flow. Where they
are added up or compared afterwards, each tower's calls should count by themselves, as they do if
the model runs once for each: what takes them together is refused.
"""

from typing import NamedTuple

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.axis import Axis, runs_along
from captum_transformer.trace.dimensions import image
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.views import views_of

_REPEATS = frozenset({"repeat", "tile", "repeat_interleave"})
_JOINS = frozenset({Kind.CONCATENATE, Kind.STACK})


class Place(NamedTuple):
    """Where towers lie in a value.

    Attributes:
        axis: the axis along which they lie; None if some were picked of them.
        attended: whether they have attended, side by side.
        picked: the operation that picked some, and which of its outputs they are.
    """

    axis: Axis | None
    attended: bool = False
    picked: tuple[Operation, int] | None = None


class Towers:
    """Which operations take towers together that have attended side by side.

    Args:
        tape: the traced forward pass.
    """

    def __init__(self, tape: Tape) -> None:
        self._places: dict[Value, Place] = {}
        self._joined_by: set[Operation] = set()
        for operation in tape.operations:
            self._read(operation)

    def refuse(self, operation: Operation) -> None:
        """Refuses an operation that takes towers together.

        Raises:
            UnsupportedOperationError: if it does.
        """
        if operation in self._joined_by:
            raise UnsupportedOperationError(
                f"{operation.described} takes together what several views of each sample, or "
                "several inputs, have become that were laid side by side along the samples' "
                "dimension (by `cat`, `stack` or `repeat`) and went through attention at once. "
                "Each of them should count as a run of the model of its own, but their attention "
                "is one call here. Run the model once for each view, and add up or compare what "
                "it returns, or use ConservativeLRP or AttnLRP."
            )

    def _read(self, operation: Operation) -> None:
        traced = operation.traced() if self._places else ()
        known = [(operand, value) for operand, value in traced if value in self._places]
        if not known and operation.kind not in _JOINS and operation.name not in _REPEATS:
            return
        for place, output in enumerate(operation.outputs):
            if output is None:
                continue
            if not known:
                axis = _laid_side_by_side(operation, output)
                if axis is not None:
                    self._places[output] = Place(axis)
                continue
            found = {self._after(operation, *signal, place, output) for signal in known}
            if None not in found and len({(one.axis, one.picked) for one in found if one}) == 1:
                # Of the same place, the one that has attended.
                self._places[output] = max(filter(None, found), key=lambda one: one.attended)
            elif any(self._places[value].attended for _, value in known):
                self._joined_by.add(operation)

    def _after(
        self, operation: Operation, operand: Operand, value: Value, place: int, output: Value
    ) -> Place | None:
        """Where towers lie in an output of an operation; None if it takes them together."""
        before = self._places[value]
        if before.axis is None:
            return before
        after: Axis | None = before.axis
        if operation.kind not in BY_ENTRY or operand.size != output.shape:
            views = views_of(operation)
            view = None if views is None else views[place]
            after = image(operation, operand, before.axis, output, view)
        if after is None:
            picked = Place(None, before.attended, (operation, place))
            return picked if operation.kind in MOVES else None
        call = operation.attention
        if call is None or call.among_channels or not _along_samples(after, output):
            return Place(after, before.attended)
        return Place(after, attended=True)


def _is_longer(shape: tuple[int, ...], before: tuple[int, ...]) -> bool:
    return len(shape) == len(before) and shape[0] > before[0] > 0


def _laid_side_by_side(operation: Operation, output: Value) -> Axis | None:
    """Where values of the same samples lie in what they were joined to, or one was repeated to."""
    values = [value for _, value in operation.traced()]
    shape, batches = output.shape, {value.batch for value in values}
    if len(batches) != 1 or None in batches or len({value.shape for value in values}) > 1:
        return None
    made_by = {value.operation for value in values}
    if len(set(values)) > 1 and len(made_by) == 1 and None not in made_by:
        return None  # pieces of one value, such as heads
    before = values[0].shape
    if operation.kind is Kind.STACK and len(values) > 1:
        return Axis.of(shape, operation.dim(len(shape)) or 0)
    axis = None
    if operation.kind is Kind.CONCATENATE and len(values) > 1:
        axis = Axis.of(shape, operation.dim(len(shape)) or 0, len(values))
    elif operation.name in _REPEATS and before and _is_longer(shape, before):
        times = shape[0] // before[0]
        axis = Axis.of(shape, 0, times)
        if operation.name == "repeat_interleave":
            axis = Axis(before[0], times, shape[1:].numel())
    return axis if axis is not None and _along_samples(axis, output) else None


def _along_samples(axis: Axis, value: Value) -> bool:
    """Whether an axis lies in the dimension that the samples lie along."""
    samples = value.samples
    if samples is None:
        return False
    if samples.size == 1:
        return runs_along(axis, value.shape, 0)
    return any(
        runs_along(axis, value.shape, dim) and runs_along(samples, value.shape, dim)
        for dim in range(len(value.shape))
    )
