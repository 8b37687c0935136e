"""What the entries along a dimension were made from: numbers of the same token, or several tokens.

A softmax over the scores of keys weights tokens. One over numbers of a single token, as of a router
or a gate, doesn't. Numbers that were cut out of features, and then joined, stacked, spread or
written into a buffer, lie along a dimension that is not known to hold features. Only the way back
along that dimension shows what they are.
"""

from dataclasses import dataclass
from math import prod

from captum_transformer.trace.axis import Axis, View, axes_in_view, dimension_of
from captum_transformer.trace.dimensions import passage, source_of
from captum_transformer.trace.features import feature_dims, is_linear_layer, mixes_features
from captum_transformer.trace.kinds import BY_ENTRY, ENTRIES_ALONE, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.stacked import count_of_tokens
from captum_transformer.trace.statistics import signal_of
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of
from captum_transformer.trace.walks import earliest_first
from captum_transformer.trace.writes import not_overwritten

_REDUCES = frozenset({Kind.SUM, Kind.MEAN, Kind.MAXIMUM, Kind.DISTANCE, Kind.SMOOTH_MAXIMUM})
_GOES_ON = MOVES | ENTRIES_ALONE | _REDUCES | {Kind.CHOICE, Kind.SUM_AT_INDICES, Kind.PRODUCT}
# These work on each token separately if they work along features.
_OF_ROWS = _REDUCES | {Kind.NORM, Kind.SOFTMAX}


@dataclass(frozen=True)
class End:
    """A value from which entries along a dimension come.

    Attributes:
        value: the value.
        place: its dimension that the entries lie along, or an axis that is a part of a dimension;
            None if each row holds one number of the value.
    """

    value: Value
    place: int | Axis | None

    @property
    def length(self) -> int:
        """The number of entries of each row that come from here."""
        if isinstance(self.place, Axis):
            return self.place.size
        return 1 if self.place is None else self.value.shape[self.place]

    @property
    def index(self) -> int:
        """The place in the order in which ends are made: one entry of a value before others."""
        return 2 * self.value.index + (self.place is not None)


def ends_of_softmax(operation: Operation) -> set[End] | None:
    """Returns what `ends_along` does, for the entries that a softmax normalises."""
    signals, traced = signal_of(operation), operation.traced()
    value = traced[0 if signals is None else signals.index(True)][1]
    dim = operation.dim(len(value.shape))
    return None if dim is None else ends_along(value, dim)


def ends_along(value: Value, dim: int) -> set[End] | None:
    """Returns the values from which the entries along a dimension come.

    Returns:
        The ends of all ways back, at features of tokens or at numbers that have no such dimension;
        None if a way back leads to anything else, such as products of queries and keys, or is not
        known.
    """
    found = dict[End, set[End] | None]()
    before = dict[End, list[End] | None]()

    def sources(one: End) -> list[End]:
        before[one] = _before(one.value, one.place)
        return before[one] or []

    for one in earliest_first(End(value, dim), sources):
        further = before[one]
        ends = [None] if further is None else [found[source] for source in further]
        known = [some for some in ends if some is not None]
        if len(known) == len(ends):
            found[one] = set().union(*known)
        else:
            is_end = one.place is None or _are_features(one.value, one.place)
            found[one] = {one} if is_end else None
    return found[End(value, dim)]


def is_of_one_number(ends: set[End]) -> bool:
    """Whether each row holds one number of a single value, and constants."""
    return [end.length for end in ends] == [1]


def are_of_one_token(ends: set[End]) -> bool:
    """Whether the numbers in each row were made from the features of one token of one value.

    The ways back must meet without mixing, moving or dropping tokens. What attention makes is made
    for the tokens that ask.
    """
    frontier = {end.value for end in ends}
    while len(frontier) > 1:
        latest = max(frontier, key=lambda value: value.index)
        frontier.remove(latest)
        made = latest.operation
        call = None if made is None else made.attention
        if call is not None and not call.among_channels:
            asking = query_value(call)
            if asking is None:
                return False
            frontier.add(asking)
            continue
        if made is None or not _keeps_tokens(made, latest):
            return False
        frontier.update(source for _, source in not_overwritten(made))
    return True


def is_of_one_token(value: Value, dim: int) -> bool:
    """Whether the entries along a dimension were made from the features of one token."""
    ends = ends_along(value, dim)
    return ends is not None and are_of_one_token(ends)


def weights_of_tokens(operation: Operation) -> list[tuple[Operand, Value]]:
    """Returns the factors of a product of entries that hold softmax weights of tokens.

    Weights that were predicted as features are weights of tokens if what they multiply are tokens.
    """
    traced = operation.traced()
    found = [(operand, value) for operand, value in traced if value.weighs_tokens]
    predicted = [(operand, value) for operand, value in traced if value.keys is not None]
    if found or operation.kind is not Kind.MUL or len(traced) != 2 or len(predicted) != 1:
        return found
    ((operand, value),) = predicted
    ((_, signal),) = [pair for pair in traced if pair[0] is not operand]
    keys = None if value.keys is None else value.keys.dim(value.shape)
    dim = -1 if keys is None else keys - len(value.shape) + len(signal.shape)
    if dim < 0 or signal.features is None or signal.shape[dim] == 1 < value.shape[keys or 0]:
        return []
    return [] if is_of_one_token(signal, dim) else predicted


def _before(value: Value, place: int | Axis | None) -> list[End] | None:
    """Returns where entries lie before the last operation, or None if that is not known."""
    made = value.operation
    if made is None or place is None or made.kind not in _GOES_ON:
        return None
    view, ends = view_of(made, value), list[End]()
    for operand, source in not_overwritten(made):
        end = None
        if isinstance(place, Axis):
            end = _by_axis(made, operand, source, place, value, view)
        elif view is None:
            end = _in_operand(made, operand, source, value, place)
        else:
            axis = Axis.of(view.shape, place)
            end = _in_source(source, value, view, place)
            end = end or _by_axis(made, operand, source, axis, value, view)
        if end is None:
            return None
        ends.append(end)
    return ends


def _by_axis(
    operation: Operation,
    operand: Operand,
    source: Value,
    axis: Axis,
    output: Value,
    view: View | None,
) -> End | None:
    """Returns where an axis lies in an operand, as a dimension or as a part of one."""
    if axis.size == 1 or (operation.kind is Kind.PRODUCT and len(operation.traced()) > 1):
        return None
    before = source_of(operation, operand, axis, output, view)
    dims = [dim for dim in range(len(source.shape)) if Axis.of(source.shape, dim) == before]
    return None if before is None else End(source, dims[0] if dims else before)


def _in_source(source: Value, output: Value, view: View, dim: int) -> End | None:
    """Returns where a dimension of a view lies in its source, or None if that is not known."""
    shape, after = tuple(source.shape), view.shape
    if after[dim] > 1 and (stride := view.stride[dim]):
        steps = [Axis.of(shape, d).inner if n > 1 else 0 for d, n in enumerate(shape)]
        return End(source, steps.index(stride)) if stride in steps else None
    if (
        len(after) == len(shape)
        and after[:dim] + after[dim + 1 :] == shape[:dim] + shape[dim + 1 :]
    ):
        return _one_of(source, output, dim)
    if _longer(after) != _longer(shape):
        return None
    alone = [d for d, n in enumerate(shape) if n == 1]
    if len(alone) > 1:  # in front of the same longer dimension
        alone = [d for d in alone if len(_longer(shape[:d])) == len(_longer(after[:dim]))]
    if not shape.count(1):
        return End(source, None)
    return End(source, alone[0]) if len(alone) == 1 else None


def _are_features(value: Value, place: int | Axis) -> bool:
    """Whether entries are features; a dimension of size one must be the only one at its place."""
    shape, made = value.shape, value.operation
    axis = place if isinstance(place, Axis) else Axis.of(shape, place)
    part = dimension_of(axis, shape)
    if made is not None and part is not None and len(made.traced()) == 1:
        ((operand, source),), product = made.traced(), made.contraction()
        if product is not None and part.dim in product.made(operand):
            # By constants, such as the weights of several experts.
            return mixes_features(source, product.summed(operand))
    same = sum(Axis.of(shape, dim) == axis for dim in range(len(shape)))
    return axis in (value.features or ()) and same <= 1


def _longer(lengths: tuple[int, ...]) -> list[int]:
    return [n for n in lengths if n > 1]


def _one_of(source: Value, output: Value, dim: int) -> End | None:
    """Returns the end at an output that has one entry along a dimension, for all of its source."""
    if source.shape[dim] == 1:
        return End(source, dim)
    return End(output, None) if dim in feature_dims(source) else None


def _in_operand(
    operation: Operation, operand: Operand, source: Value, output: Value, dim: int
) -> End | None:
    """Returns where a dimension of an output lies in an operand, or None if that is not known."""
    after = len(output.shape)
    found = passage(operation, operand, after)
    product = operation.contraction()
    if product is not None:
        summed = product.summed(operand)
        if dim not in found.to and operation.spreads and len(summed) < 2:
            # Made from the only entry that is summed over, or from none.
            return End(source, summed[0] if summed else None)
        if dim not in found.to or (len(operation.traced()) > 1 and not operation.spreads):
            return None
    if dim in found.to:
        place = found.to.index(dim)
        if operation.kind in _REDUCES and place in found.mixed:
            return _one_of(source, output, place)
        return End(source, place)
    new = operation.kind is Kind.STACK and operation.dim(after) == dim
    ahead = operation.kind in BY_ENTRY and dim < after - len(source.shape)
    written = operand is operation.argument("source") and None not in found.to
    return End(source, None) if new or ahead or written else None


def _keeps_tokens(operation: Operation, output: Value) -> bool:
    """Whether each token of an output was made from the same token of each traced operand."""
    view = view_of(operation, output)
    if view is not None:
        return _shows_tokens(operation.traced()[0][1], view)
    after, sources, whole = len(output.shape), list[Value](), True
    for operand, source in not_overwritten(operation):
        to, mixed = passage(operation, operand, after)
        if operation.kind in _OF_ROWS and not set(mixed) <= set(feature_dims(source)):
            return False
        whole = whole and source.shape == output.shape and to == tuple(range(after)) and not mixed
        sources.append(source)
    if whole and operation.kind in MOVES:
        return True
    if operation.kind in _OF_ROWS | ENTRIES_ALONE or is_linear_layer(operation):
        known = all(one.features is not None for one in (output, *sources))
        return whole or (known and len({*map(count_of_tokens, (output, *sources))}) == 1)
    return False


def _shows_tokens(source: Value, view: View) -> bool:
    """Whether a view shows all tokens, each once, or some of the features of each."""
    if view.numel() == source.shape.numel():
        return view.order() is not None
    seen = None if source.features is None else axes_in_view(tuple(source.features), view)
    return seen is not None and view.numel() == count_of_tokens(source) * prod(a.size for a in seen)
