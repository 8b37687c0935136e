"""Which constants are biases: those added to the output of a linear map or a norm, in any spelling.

What ``F.linear(x, W, b)`` adds is a bias, so what ``x @ W + b`` adds is one, too. A position
embedding is not: it differs from token to token, and the map does not. Whether a constant is a bias
must not depend on the number of samples, so a bias that was repeated for each sample is still one.
"""

from collections.abc import Iterable, Sequence

from captum_transformer.trace.axis import Axis, pieces_in_view
from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.features import mixes_features
from captum_transformer.trace.kinds import CONVOLUTIONS, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.statistics import signal_of
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import views_of

Axes = frozenset[Axis]
_MAPS = CONVOLUTIONS | {Kind.NORM}
_SCALES = frozenset({Kind.MUL, Kind.DIV, Kind.PRODUCT, Kind.COPY})


def adds_bias(operation: Operation) -> bool:
    """Returns whether an addition adds only biases, or single numbers, to its only signal."""
    ((signal, value),) = operation.traced()
    constants = (operand for operand in operation.operands if operand is not signal)
    return all(_is_bias(constant, value, operation.outputs[0]) for constant in constants)


def has_bias(operation: Operation, signal: Operand) -> bool:
    """Returns, before it has run, whether a product of a signal with weights adds only a bias."""
    product, value = operation.contraction(), signal.value
    addend = operation.argument("bias")
    if addend is None or product is None or value is None:
        return addend is None or addend.value is None
    if addend.value is not None:
        return False
    behind = len(product.output) - len(addend.size)
    dims = enumerate(zip(addend.size, addend.given.stride(), strict=True))
    differs = {dim + behind for dim, (length, step) in dims if length > 1 and step}
    samples = None if value.samples is None else value.samples.dim(value.shape)
    of_samples = None if samples is None else product.moved(signal, samples)
    return differs <= {*_weighted(operation, product, signal), of_samples}


def adds_to(operation: Operation) -> bool:
    """Returns, before it has run, whether an addition adds only biases to its only signal."""
    ((signal, value),) = operation.traced()
    constants = [operand for operand in operation.operands if operand is not signal]
    return all(_fits(c.size, value.shape) and _is_bias(c, value, value) for c in constants)


def _fits(size: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Returns whether a size broadcasts to a shape without changing the shape."""
    behind = len(shape) - len(size)
    return behind >= 0 and all(n in (1, m) for n, m in zip(size, shape[behind:], strict=True))


def adds_term(operation: Operation) -> bool:
    """Returns whether a product adds, in the same function, something other than a bias."""
    addend, traced, output = operation.argument("bias"), operation.traced(), operation.outputs[0]
    if addend is None or operation.kind in CONVOLUTIONS or output is None:
        return addend is not None and len(traced) > 1
    product = operation.contraction() if len(traced) == 1 == len(addend.size) else None
    if product is not None and addend.value is None:
        # The most frequent case: one number for each feature that weights make.
        factors = zip(product.factors, product.letters, strict=True)
        weights = (of for f, of in factors if f.role is Role.WEIGHT and f.value is None)
        if any(product.output[-1:] in of for of in weights):
            return False
    return addend.value is not None or not _is_bias(addend, output, output)


def _is_bias(constant: Operand, onto: Value, output: Value | None) -> bool:
    """Returns whether a constant only differs along axes that weights made or a norm normalised.

    It may differ from sample to sample: its value for one sample does not depend on the others.
    If there is only one token, a constant with a dimension for tokens belongs to it and is no bias.
    """
    if output is None or onto.shape != output.shape:
        return False
    dims, sizes, strides = range(-len(constant.size), 0), constant.size, constant.given.stride()
    own = _own(onto)
    # A single number belongs to no token; a view may add dimensions of size one for heads.
    made = onto.operation
    if any(n > 1 for n in sizes) and made is not None and views_of(made) is None:
        samples = None if onto.samples is None else onto.samples.dim(onto.shape)
        alone = {dim % len(onto.shape) for dim in dims if sizes[dim] == onto.shape[dim] == 1}
        if not _axes(onto, alone - {samples}) <= own:
            return False
    differs = _axes(onto, (dim for dim in dims if sizes[dim] > 1 and strides[dim]))
    return differs <= own | _samples(onto)


def _samples(value: Value) -> Axes:
    return frozenset() if value.samples is None else frozenset({value.samples})


def _axes(value: Value, dims: Iterable[int]) -> Axes:
    return frozenset(Axis.of(value.shape, dim % len(value.shape)) for dim in dims)


def _own(value: Value) -> Axes:
    """Returns the axes along which a value's bias may differ: none if no map or norm made it."""
    operation, features = value.operation, frozenset(value.features or ())
    if operation is None:
        return frozenset()
    traced, signal = operation.traced(), signal_of(operation) or [True]
    signals = [t for t, is_signal in zip(traced, signal, strict=False) if is_signal]
    if len(traced) != len(signal) or len(signals) != 1:
        return frozenset()
    ((operand, source),), product = signals, operation.contraction()
    if product is not None and applies_weights(product, operand):
        return _axes(value, _weighted(operation, product, operand))
    if operation.kind in _MAPS:
        return features
    if len(traced) > 1:
        return features | _divided_alike(operation, value, [t for t in traced if t[0] != operand])
    if (views := views_of(operation)) is not None:
        view = views[operation.outputs.index(value)]
        return frozenset(pieces_in_view(tuple(_own(source) | _samples(source)), view))
    adds = operation.kind in (Kind.ADD, Kind.SUB) and adds_bias(operation)
    if source.shape == value.shape and (adds or operation.kind in _SCALES):
        return _own(source)
    return frozenset()


def applies_weights(product: Contraction, signal: Operand) -> bool:
    """Returns whether constants of a product, except divisors, are weights as of a linear layer.

    They are if they sum over features, not tokens, unless there is one vector for each row, such as
    a one-hot vector that picks a score: that is a sum of products. The keys of softmax weights are
    tokens, also where no features of the queries are known, as with heads beside the samples.
    """
    own, summed = product.of(signal), product.summed(signal)
    letters, value = {own[dim] for dim in summed}, signal.value
    constants = [
        (factor, of)
        for factor, of in zip(product.factors, product.letters, strict=True)
        if factor.value is None and factor.role is not Role.STATISTIC and letters & set(of)
    ]
    if not constants or any(factor.role is Role.WEIGHT for factor, _ in constants):
        return bool(constants)
    if value is not None and value.features:
        if not mixes_features(value, summed):
            return False
    elif value is not None and _sums_over_keys(value, summed):
        return False
    lengths = {
        letter: length
        for operand, of in [(signal, own), *constants]
        for letter, length in zip(of, operand.size, strict=True)
        if letter in product.output and (length > 1 or letter == product.output[0])
    }
    return not all(letter in own and any(letter in of for _, of in constants) for letter in lengths)


def _sums_over_keys(value: Value, dims: Sequence[int]) -> bool:
    """Returns whether dimensions hold the keys of a value that is known to have no features."""
    no_features = value.features is not None and not value.features
    return no_features and value.keys is not None and value.keys.dim(value.shape) in dims


def _weighted(operation: Operation, product: Contraction, signal: Operand) -> list[int]:
    """Returns the dimensions of a product along which weights differ, and a bias may as well."""
    own, weighted = product.of(signal), set(product.output) - set(product.of(signal))
    for factor, letters in zip(product.factors, product.letters, strict=True):
        if factor.value is None:
            given = zip(letters, factor.size, factor.given.stride(), strict=True)
            weighted |= {letter for letter, length, step in given if length > 1 and step}
    if operation.argument("index") is not None:  # says which row has which weights
        weighted.add(own[0])
    return [dim for dim, letter in enumerate(product.output) if letter in weighted]


def _divided_alike(
    operation: Operation, value: Value, divisors: list[tuple[Operand, Value]]
) -> Axes:
    """Returns the axes along which all entries are divided by the same number."""
    product, differ = operation.contraction(), set[int | None]()
    for operand, divisor in divisors:
        behind = len(value.shape) - len(divisor.shape)
        for dim, (length, step) in enumerate(zip(divisor.shape, divisor.stride, strict=True)):
            if length > 1 and step:
                differ.add(dim + behind if product is None else product.moved(operand, dim))
    return _axes(value, set(range(len(value.shape))) - differ)
