"""Where the features of tokens lie in a value, as shown by the operations that mix them.

An input alone doesn't show which of its dimensions holds features. The first operation that mixes
features does, and then they are known for all values made from the input before. Until then they
are unknown (None). This differs from having no features (an empty tuple), which means that each
number is a token.
"""

from collections.abc import Iterator, Sequence

from captum_transformer.trace.axis import Axis, View, pieces_in_view
from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.dimensions import axis_after
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Kind, Role
from captum_transformer.trace.lookups import features_begin
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import back_to_scores
from captum_transformer.trace.products import contraction_of
from captum_transformer.trace.stacked import of_stacked_parts
from captum_transformer.trace.value import Features, Value
from captum_transformer.trace.views import view_of

# The operands of these operations have their features in the same dimensions.
_ALIGNED = (BY_ENTRY - {Kind.MUL, Kind.DIV}) | {Kind.CONCATENATE, Kind.STACK}
# The kinds that may make features which none of their operands has.
_CREATES = CONVOLUTIONS | {Kind.EMBEDDING, Kind.ATTENTION, Kind.PRODUCT}
# These may add features or select from them; the result still holds features.
RESIZES = frozenset({Kind.CONCATENATE, Kind.PAD, Kind.CHOICE, Kind.MOVE})
_MULTIPLIES = frozenset({Kind.PRODUCT, Kind.ATTENTION})
_ATTENTION, _EMBEDDING, _PRODUCT = Kind.ATTENTION, Kind.EMBEDDING, Kind.PRODUCT
_WEIGHT = Role.WEIGHT


def place_features(operation: Operation, output: Value, view: View | None) -> None:
    """Sets where the features lie in an output, given those of the operands."""
    traced = operation.traced()
    if operation.kind in BY_ENTRY:
        for _, source in traced:
            if source.features and source.shape == output.shape:
                output.features = source.features
                return
    elif operation.kind in _CREATES and output is operation.outputs[0]:
        output.features = _new_features(operation, output)
        if output.features is not None:
            return
    # An attention output takes the features of a head from the values, and the heads from the
    # probabilities.
    several = operation.kind in _MULTIPLIES
    for operand, source in traced:
        if source.features is not None and (several or not output.features):
            after = features_after(operation, operand, source.features, output, view)
            if after or operation.kind not in MOVES or not source.features:
                known = output.features
                output.features = (
                    tuple(dict.fromkeys((*known, *after))) if known and after else known or after
                )
    if output.features is not None and (axis := of_stacked_parts(operation, output)) is not None:
        output.features = tuple(dict.fromkeys((*output.features, axis)))


def features_after(
    operation: Operation,
    operand: Operand,
    features: Sequence[Axis],
    output: Value,
    view: View | None,
) -> tuple[Axis, ...]:
    """Returns the axes of an output that the features of an operand become."""
    if view is not None:
        return pieces_in_view(tuple(features), view)
    lies = (axis_after(operation, operand, axis, output, None, RESIZES) for axis in features)
    return tuple(dict.fromkeys(axis for axis in lies if axis is not None))


def _new_features(operation: Operation, output: Value) -> tuple[Axis, ...] | None:
    """Returns the axes of features that an operation creates, or None if it creates none."""
    kind, ndim = operation.kind, len(output.shape)
    if kind is _EMBEDDING and (begin := features_begin(operation)) is not None:
        return tuple(Axis.of(output.shape, dim) for dim in range(begin, ndim))
    if kind in CONVOLUTIONS:
        return (Axis.of(output.shape, ndim - len(operation.argument("weight").size) + 1),)
    if kind is _ATTENTION and operation.argument("value").value is None:
        return (Axis.of(output.shape, ndim - 1),)
    if kind is not _PRODUCT or not is_linear_layer(operation):
        return None
    product, (operand, _) = operation.contraction(), operation.traced()[0]
    made = () if product is None else product.made(operand)
    return tuple([Axis.of(output.shape, dim) for dim in made])


def is_linear_layer(operation: Operation) -> bool:
    """Whether an operation multiplies the features of all tokens with the same constants.

    Constants that differ between samples or tokens, such as repeated learned queries, are not the
    weights of a layer.
    """
    traced = operation.traced()
    if len(traced) != 1 or (product := operation.contraction()) is None:
        return False
    ((operand, value),) = traced
    for factor in product.factors:
        if factor.role is _WEIGHT:
            return True
    shared = product.shared(operand)
    mixed = [dim for dim in product.summed(operand) if operand.size[dim] > 1 or dim in shared]
    return (
        bool(mixed)
        and shared == mixed
        and mixes_features(value, mixed)
        and not any(factor.tokens is not None for factor in product.factors)
    )


def mixes_features(value: Value, summed: Sequence[int]) -> bool:
    """Whether the dimensions that a product sums over are all features."""
    longer = {dim for dim in summed if value.shape[dim] > 1}
    return (longer or set(summed)) <= set(feature_dims(value))


def feature_dims(value: Value) -> list[int]:
    """Returns the dimensions that hold features of a token, as far as they are known."""
    axes = value.features or ()
    return [dim for axis in axes if (dim := axis.dim(value.shape)) is not None]


def learn_features(operation: Operation) -> list[Value]:
    """Infers from an operation which dimensions of its operands are features, if unknown so far.

    Returns:
        The values whose features have become known.
    """
    found = []
    for value, features in _told(operation):
        pending = [(value, features)]
        while pending:
            value, features = pending.pop()
            if value.features is not None:
                continue
            value.features = features
            found.append(value)
            made = value.operation
            if made is not None:
                pending += [
                    (source, before)
                    for operand, source in made.traced()
                    if source.features is None
                    and (before := _before(made, operand, source, value)) is not None
                ]
    return found


def _told(operation: Operation) -> Iterator[tuple[Value, tuple[Axis, ...]]]:
    """Yields values, each with the axes that an operation shows to be its features."""
    for operand, value in operation.traced():
        if value.features is None:
            dims = _mixed(operation, operand)
            if dims:
                yield value, tuple(Axis.of(value.shape, dim) for dim in dims)
    output = operation.outputs[0]
    if operation.kind in _ALIGNED and output is not None and output.features is not None:
        for operand, value in operation.traced():
            before = _before(operation, operand, value, output)
            if before is not None:
                yield value, before
    if operation.pattern is not None and operation.kind is Kind.PRODUCT:
        steps = back_to_scores(operation.operands[operation.pattern.weights].value)
        product = contraction_of(*steps[-1]) if steps else None
        if product is not None and sum(one.value is not None for one in product.factors) > 1:
            for factor, letters in zip(product.factors, product.letters, strict=True):
                dims = [d for d in product.summed(factor) if _is_shared(letters[d], product)]
                if factor.value is not None:
                    yield factor.value, tuple(Axis.of(factor.size, d) for d in dims)


def _is_shared(letter: str, product: Contraction) -> bool:
    return all(letter in letters for letters in product.letters)


def _mixed(operation: Operation, operand: Operand) -> list[int]:
    """Returns the dimensions of an operand that an operation mixes as features of each token."""
    ndim = len(operand.size)
    if operand.role is not Role.SIGNAL and operation.kind is not Kind.PRODUCT:
        return []  # weights and biases that depend on the inputs
    if operation.kind in CONVOLUTIONS:
        return [ndim - len(operation.argument("weight").size) + 1]
    if operation.kind is Kind.ATTENTION:
        return [ndim - 1]
    if operation.kind is Kind.NORM:
        shape = operation.argument("normalized_shape")
        if shape is None:
            return [1]
        return [ndim - 1] if isinstance(shape, int) or len(shape) == 1 else []
    product = operation.contraction()
    if product is None:
        return []
    pattern = operation.pattern
    if pattern is None:
        return product.summed(operand) if is_linear_layer(operation) else []
    # For a product with attention probabilities: the features of the values.
    last = ndim - 1 if pattern.value_order is None else pattern.value_order[-1]
    is_value = operand is operation.operands[1 - pattern.weights]
    return [last] if is_value and last is not None else []


def _before(operation: Operation, operand: Operand, source: Value, output: Value) -> Features:
    """Returns where features of an output lie in an operand, or None if not in whole dimensions."""
    features, view = _longer(output.features), view_of(operation, output)
    if not features and not (operation.kind in MOVES or operation.kind in BY_ENTRY):
        return None
    product = operation.contraction()
    dims = {axis.dim(output.shape) for axis in features}
    alone = len(operation.traced()) == 1
    if product is not None and alone and dims & set(product.made(operand)):
        return tuple(Axis.of(source.shape, dim) for dim in product.summed(operand))
    found: list[Axis] = []
    for dim, length in enumerate(source.shape):
        if length > 1:
            axis = Axis.of(source.shape, dim)
            after = set(features_after(operation, operand, (axis,), output, view))
            if after & features:
                if not after <= features:
                    return None
                found.append(axis)
                features -= after
    broadcast = operation.kind in BY_ENTRY and source.shape != output.shape
    return tuple(found) if not features or broadcast else None


def keeps_features(operation: Operation, output: Value) -> bool:
    """Whether an operation leaves the features of each token unchanged when it moves entries."""
    if operation.kind not in MOVES:
        return True
    view, stacked = view_of(operation, output), of_stacked_parts(operation, output)
    kept = _longer(output.features) - {stacked}
    return any(
        source.features is not None
        and _longer(features_after(operation, operand, source.features, output, view)) == kept
        for operand, source in operation.traced()
    )


def _longer(axes: Features) -> set[Axis]:
    """Returns the axes of size greater than one, the only ones that a move can change."""
    return {axis for axis in axes or () if axis.size > 1}


def sums_over_features(operation: Operation) -> bool:
    """Whether an operation multiplies two signals and sums over exactly all their features.

    A product that keeps features of one signal passes its tokens on, as in linear attention.
    """
    product = operation.contraction()
    if product is None or len(product.factors) != 2 or len(operation.traced()) != 2:
        return False
    for operand, value in operation.traced():
        gone = product.summed(operand)
        if {Axis.of(value.shape, dim) for dim in gone} != set(value.features or ()):
            return False
    return True


def chooses_features(operation: Operation) -> bool:
    """Whether an operation selects among each token's last features, as a router of experts."""
    if operation.kind is not Kind.CHOICE:
        return False
    ((_, value),) = operation.traced()
    output, last = operation.outputs[0], len(value.shape) - 1
    if output is None or len(output.shape) <= last or operation.dim(last + 1) != last:
        return False
    return Axis.of(value.shape, last) in (value.features or ())
