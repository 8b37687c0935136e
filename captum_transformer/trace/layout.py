"""Determines where samples, features and keys lie in the outputs of an operation."""

import math
from collections.abc import Sequence

from captum_transformer.trace.along import are_of_one_token, ends_of_softmax
from captum_transformer.trace.applied_weights import weighs_some_tokens
from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.batch import placed
from captum_transformer.trace.dimensions import axis_after, source_of
from captum_transformer.trace.features import (
    RESIZES,
    learn_features,
    mixes_features,
    place_features,
)
from captum_transformer.trace.kinds import BY_ENTRY, ENTRIES_ALONE, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import is_weighted_signal
from captum_transformer.trace.samples import place_samples
from captum_transformer.trace.statistics import softmax_dim
from captum_transformer.trace.value import Features, Value, lengths_of
from captum_transformer.trace.views import view_of, views_of
from captum_transformer.trace.weighted_constants import mixes_by_constants

_MAY_BE_SOFTMAX = frozenset({Kind.SOFTMAX, Kind.DIV, Kind.MUL, Kind.ENTRYWISE})
_SCALES = frozenset({Kind.MUL, Kind.DIV})
_MIXES = frozenset({Kind.PRODUCT, Kind.TRANSFORM})
_CHOOSES = frozenset({Kind.CHOICE, Kind.MAXIMUM})
_KEEPS_WEIGHTS = MOVES | ENTRIES_ALONE | _CHOOSES
_JOINS = MOVES | _CHOOSES
_COPY, _MUL, _PRODUCT, _TRANSFORM = Kind.COPY, Kind.MUL, Kind.PRODUCT, Kind.TRANSFORM
_MAY_KEEP_ALL = frozenset({Kind.COPY, Kind.MOVE})


def lay_out(operations: Sequence[Operation]) -> None:
    """Sets the axes and the origin of the last operation's outputs.

    If the operation shows which dimensions of its operands hold features or samples, the earlier
    values that the operands were made of are updated, too.
    """
    operation = operations[-1]
    traced = operation.traced()
    _place(operation)
    for operand in operation.operands:
        source = operand.value or operand.tokens
        if source is not None and (source.features is None or source.batch is None):
            known = [*learn_features(operation), *_learn_samples(operation)]
            if known:
                made = min(known, key=lambda value: value.index).operation
                start = 0 if made is None else made.index + 1
                for again in operations[start:]:
                    _place(again, again=True)
            break
    if operation.kind in _MAY_KEEP_ALL and len(operation.outputs) == len(traced) == 1:
        (first,), ((_, value),) = operation.outputs, traced
        if first is not None and _keeps_all(operation, first, value):
            first.origin = value.origin


def _place(operation: Operation, *, again: bool = False) -> None:
    """Sets the attributes of outputs that follow from the samples and features of operands.

    Args:
        operation: the operation.
        again: whether more is known of its operands than before.
    """
    kind, traced, pattern = operation.kind, operation.traced(), operation.pattern
    mixtures, may_weigh = 0, kind in _MAY_BE_SOFTMAX
    for operand, value in traced:
        # An attention call drops the mixtures in the history of its queries and keys.
        if pattern is None or operand not in pattern.held:
            mixtures |= value.mixtures
        may_weigh = may_weigh or value.keys is not None or value.is_cut
    if pattern is None and _mixes(operation):
        mixtures |= 1 << operation.index
    views = views_of(operation)
    for place, output in enumerate(operation.outputs):
        if output is not None:
            view = None if views is None else views[place]
            if output.batch is None:
                place_samples(operation, output, view)
            if output.features is None or again:
                _place_more_features(operation, output, view)
            output.keys = _keys(operation, output, view) if may_weigh else None
            output.is_cut = may_weigh and output.keys is None and _are_cut(operation, output)
            output.mixtures = mixtures


def _place_more_features(operation: Operation, output: Value, view: View | None) -> None:
    """Sets the features of an output, unless more of them are known than those of operands."""
    known, output.features = output.features, None
    place_features(operation, output, view)
    if known is not None and _count(output.features) <= _count(known):
        output.features = known


def _count(features: Features) -> int:
    return math.prod(axis.size for axis in features or ())


def _keeps_all(operation: Operation, output: Value, value: Value) -> bool:
    """Whether the output of an operation holds each entry of its operand exactly once."""
    if operation.kind is _COPY:
        return True
    view = view_of(operation, output)
    return (
        view is not None
        and output.shape.numel() == value.shape.numel()
        and view.order() is not None
    )


def _mixes(operation: Operation) -> bool:
    """Whether it mixes tokens, perhaps for attention, though it isn't attention itself."""
    kind = operation.kind
    if len(operation.traced()) == 1 and kind is not _TRANSFORM:
        return mixes_by_constants(operation)
    if kind is _MUL or (kind is _PRODUCT and operation.spreads):
        return len({weighs_some_tokens(value) for _, value in operation.traced()}) > 1
    return kind in _MIXES


def _keys(operation: Operation, output: Value, view: View | None) -> Axis | None:
    """Returns the axis of keys in an output that still holds softmax weights, or None."""
    if operation.kind in _MAY_BE_SOFTMAX and (dim := softmax_dim(operation)) is not None:
        return _normalised(operation, output, dim)
    weights = [(o, value) for o, value in operation.traced() if value.keys is not None]
    if not weights or _are_used_up(operation, weights, output):
        return None
    # A softmax over heads, such as a gate, has an axis of its own.
    of_tokens, of_heads = set[Axis](), set[Axis]()
    for operand, value in weights:
        keys = value.keys
        if keys is None:
            continue
        # The largest weights of features, or all of them among zeros. Without some of the keys, as
        # without an attention sink, they are still probabilities.
        of_features = keys in (value.features or ())
        resizes = RESIZES if of_features else _scatters(operation, operand)
        kept = axis_after(operation, operand, keys, output, view, resizes)
        # After a softmax over features, such as experts, an axis that is no longer one of features
        # doesn't hold keys.
        if kept is not None and not (of_features and kept not in (output.features or ())):
            (of_heads if of_features else of_tokens).add(kept)
    # If features aren't known, it isn't known which of several axes is the one of tokens.
    if len(of_tokens | of_heads) > 1 and any(value.features is None for _, value in weights):
        return None
    # Weights along several axes of tokens, as over keys and over queries, have no axis of keys.
    found = of_tokens or of_heads
    return found.pop() if len(found) == 1 else None


def _are_cut(operation: Operation, output: Value) -> bool:
    """Whether an output whose keys lie along no known axis still holds softmax weights."""
    traced = operation.traced()
    weights = [pair for pair in traced if pair[1].weighs_tokens or pair[1].is_cut]
    if not weights or operation.kind not in _KEEPS_WEIGHTS:
        return False
    if operation.kind in _JOINS and len(weights) < len(traced):
        return False  # they are joined with others
    if (
        operation.kind in _SCALES
        and len(weights) > 1
        and any(value.features is None for _, value in weights)
    ):
        return False  # one of them may be a gate, and which one is not known
    return not _are_used_up(operation, weights, output)


def _normalised(operation: Operation, output: Value, dim: int) -> Axis:
    """Returns the axis that a softmax normalises; if it holds numbers of one token, as features."""
    axis, known = Axis.of(output.shape, dim), output.features or ()
    ends = ends_of_softmax(operation) if operation.traced() else None
    if ends is None or all(end.length > 1 for end in ends):
        return axis
    if len(ends) == 1 or are_of_one_token(ends):
        output.features = tuple(dict.fromkeys((*known, axis)))
    elif axis in known:  # numbers of several tokens that were joined
        output.features = tuple(one for one in known if one != axis)
    return axis


def _scatters(operation: Operation, operand: Operand) -> tuple[Kind, ...]:
    """Returns the kind of an operation that writes weights to their keys' places, and no other."""
    alone = len(operation.traced()) == 1 and operation.arguments.get("reduce") in (None, "sum")
    return (operation.kind,) if alone and operand is operation.arguments.get("source") else ()


def _are_used_up(
    operation: Operation, weights: Sequence[tuple[Operand, Value]], output: Value
) -> bool:
    """Whether softmax weights are applied to a signal, so that the output isn't weights."""
    if len(weights) == len(operation.traced()):
        return operation.kind is Kind.PRODUCT and any(is_weighted_signal(v) for _, v in weights)
    if operation.kind in _SCALES:
        # A gate scales the weights. If the weights are broadcast, they weight the other factor.
        return any(_is_repeated(value, output) for _, value in weights)
    product = operation.contraction()
    if product is None:
        return operation.kind not in _JOINS
    if any(output.shape[dim] > 1 for operand, _ in weights for dim in product.made(operand)):
        return True
    # A gate for each head scales the weights, too, if their sum over heads is taken at once.
    return not operation.spreads and not all(
        mixes_features(value, product.summed(operand)) for operand, value in weights
    )


def _is_repeated(value: Value, output: Value) -> bool:
    """Whether a factor is broadcast along some dimension of the product."""
    once = (1,) * (len(output.shape) - len(value.shape)) + lengths_of(value)
    return any(own == 1 < length for own, length in zip(once, output.shape, strict=True))


def _learn_samples(operation: Operation) -> list[Value]:
    """Infers the samples of learned queries from an operation that combines them with signals.

    Learned queries are shared by all samples, unless the signals of each sample are combined with
    entries of their own, to which the queries were repeated.

    Returns:
        The values whose samples have become known.
    """
    met = operation.outputs[0]
    pending = [(operation, o, o.tokens, met) for o in operation.operands if o.tokens and met]
    found = []
    while pending:
        operation, operand, source, output = pending.pop()
        batch, made = output.batch, source.operation
        if source.batch is None and batch is not None and made is not None:
            axis = _before(operation, operand, source, output, batch.axis)
            if axis is not None:
                source.batch = placed(batch, axis)
                found.append(source)
                pending += [(made, of, value, source) for of, value in made.traced()]
    return found


def _before(
    operation: Operation, operand: Operand, source: Value, output: Value, goal: Axis
) -> Axis | None:
    """Returns where the samples lie in an operand, given where they lie in an output."""
    if goal.size == 1:
        return Axis(1, 1, source.shape.numel())
    if operation.kind in BY_ENTRY and source.shape == output.shape:
        return goal
    return source_of(operation, operand, goal, output, view_of(operation, output))
