"""Towers that lie side by side along the samples' dimension, such as several views of one input.

An attention call for all of them is one call of the model, and one source of the flow. Where towers
are added or compared afterwards, each tower's calls should count separately, as they do if the
model runs once for each tower. Operations that combine towers are therefore refused.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.axis import Axis, Part, dimension_of, runs_along
from captum_transformer.trace.dimensions import image, passage
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_through, views_of, ways_back

_JOINS = frozenset({Kind.CONCATENATE, Kind.STACK})


class Place(NamedTuple):
    """Where towers lie in a value.

    Attributes:
        axis: the axis along which they lie; None if some of them were picked.
        attended: whether they have attended, side by side.
        picked: the operation that picked some, and the index of the output that they are.
    """

    axis: Axis | None
    attended: bool = False
    picked: tuple[Operation, int] | None = None


class Towers:
    """Finds the operations that combine towers that have attended side by side.

    Args:
        tape: the traced forward pass.
    """

    def __init__(self, tape: Tape) -> None:
        self._places: dict[Value, Place] = {}
        self._joined_by: set[Operation] = set()
        for operation in tape.operations:
            self._read(operation)

    def refuse(self, operation: Operation) -> None:
        """Raises an error for an operation that combines towers.

        Raises:
            UnsupportedOperationError: if the operation does.
        """
        if operation in self._joined_by:
            raise UnsupportedOperationError(
                f"{operation.described} takes together what several tensors of the same samples "
                "have become that were laid side by side along the samples' dimension (by `cat`, "
                "`stack` or `repeat`) and went through attention at once: views of each sample, "
                "several inputs, parts that may overlap, or heads that were made one by one. "
                "Views and inputs should each count as a separate run of the model, but their "
                "attention is one call here. Run the model once for each view, and add up or "
                "compare what it returns, give heads a dimension behind that of the samples, or "
                "use ConservativeLRP or AttnLRP."
            )

    def _read(self, operation: Operation) -> None:
        traced, first = operation.traced(), operation.outputs[0]
        known = [signal for signal in traced if signal[1] in self._places] if self._places else []
        grows = len(traced) == 1 and first and first.shape.numel() > traced[0][1].shape.numel()
        if not known and not grows and operation.kind not in _JOINS:
            return
        for place, output in enumerate(operation.outputs):
            if output is None:
                continue
            if not known:
                axis = _laid_side_by_side(operation, output, place)
                if axis is not None:
                    self._places[output] = Place(axis)
                continue
            found = {self._after(operation, *signal, place, output) for signal in known}
            attended = any(self._places[value].attended for _, value in known)
            if None not in found and len({(one.axis, one.picked) for one in found if one}) == 1:
                # Of the same place, the one that has attended.
                after = max(filter(None, found), key=lambda one: one.attended)
                if attended or not self._differs(operation, after.axis, output):
                    self._places[output] = after
            elif attended:
                self._joined_by.add(operation)

    def _differs(self, operation: Operation, axis: Axis | None, output: Value) -> bool:
        """Returns whether another operand differs between towers, as queries for repeated keys."""
        return axis is not None and any(
            operand.size[dim] == output.shape[place] and runs_along(axis, output.shape, place)
            for operand, value in operation.traced()
            if value not in self._places
            for dim, place in enumerate(passage(operation, operand, len(output.shape)).to)
            if place is not None
        )

    def _after(
        self, operation: Operation, operand: Operand, value: Value, place: int, output: Value
    ) -> Place | None:
        """Returns where towers lie in an output, or None if the operation combines them."""
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


def _laid_side_by_side(operation: Operation, output: Value, place: int) -> Axis | None:
    """Returns the axis along which values of the same samples were joined, or one was repeated."""
    values = [value for _, value in operation.traced()]
    if len(values) == 1:
        return _repeated(operation, output, place)
    batches = {value.batch for value in values}
    alike = len({operand.size for operand in operation.operands}) == 1
    if not alike or len(batches) != 1 or None in batches or _are_pieces(values):
        return None
    dim = operation.dim(len(output.shape)) or 0
    return Axis.of(output.shape, dim, len(operation.operands))


def _are_pieces(values: Sequence[Value]) -> bool:
    """Whether values are separate parts of one value, such as heads or windows, rearranged."""
    origins = [value.origin for value in values]
    made = [origin.operation for origin in origins if origin.operation is not None]
    if len(made) < len(values) or len({*origins}) < len(values):
        return False
    if len({*made}) == 1:
        return True
    ways = [ways_back(value) for value in values]
    whole = next((one for one in ways[0] if all(one in way for way in ways)), None)
    if whole is None:
        return False
    shape = tuple(whole.shape)
    views = [view_through(shape, way[whole]) for way in ways]
    known = [view for view in views if view is not None]
    return len(known) == len(views) and all(
        one.apart_from(other, shape) for one, other in combinations(known, 2)
    )


def _repeated(operation: Operation, output: Value, place: int) -> Axis | None:
    """Returns the axis of the copies that an operation makes of its only signal's entries."""
    ((operand, value),), shape, samples = operation.traced(), output.shape, output.samples
    if samples is None or not value.shape.numel():
        return None
    if (views := views_of(operation)) is not None:
        steps = enumerate(zip(shape, views[place].stride, strict=True))
        return next((Axis.of(shape, dim) for dim, (n, step) in steps if n > 1 and not step), None)
    if operation.kind not in MOVES | BY_ENTRY and not operation.spreads:
        return None
    to = passage(operation, operand, len(shape)).to
    before = {after: operand.size[dim] for dim, after in enumerate(to)}
    for dim, length in enumerate(shape):
        times = length // before.get(dim, 1)
        if times > 1 and (samples.size == 1 or not runs_along(samples, shape, dim)):
            return Axis.of(shape, dim, times)
        if times > 1 and (part := dimension_of(samples, shape)) is not None:
            times = times if dim in before else length // samples.size
            inner = 1 if part.outer == 1 else length // times
            return Part(dim, length // times // inner, times, inner).of(shape, dim)
    return None


def _along_samples(axis: Axis, value: Value) -> bool:
    """Returns whether an axis lies in the dimension that the samples lie along."""
    samples = value.samples
    if samples is None:
        return False
    if samples.size == 1:
        return runs_along(axis, value.shape, 0)
    return any(
        runs_along(axis, value.shape, dim) and runs_along(samples, value.shape, dim)
        for dim in range(len(value.shape))
    )
