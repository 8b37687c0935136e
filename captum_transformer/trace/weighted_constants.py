"""Attention weights that are applied to constants, such as relative values or positions."""

from captum_transformer.trace.axis import runs_along
from captum_transformer.trace.features import feature_dims, mixes_features
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import scores_of
from captum_transformer.trace.products import repeats_signal
from captum_transformer.trace.value import Value


def weights_of_constants(operation: Operation) -> list[Operand]:
    """Returns the softmax weights of tokens that a product applies to constants, if any.

    A product over heads, or with numbers of the weights' own shape, makes weights of them again.
    """
    if len(operation.traced()) != 1:
        return []
    ((operand, value),) = operation.traced()
    if not (value.weighs_tokens or value.is_cut) or operand.role is Role.BIAS:
        return []
    product = operation.contraction()
    if product is None:
        return [operand] if repeats_signal(operation) else []
    summed = [dim for dim in product.summed(operand) if operand.size[dim] > 1]
    if not summed:
        sizes = (zip(product.of(o), o.size, strict=True) for o in product.factors)
        own = product.of(operand)
        made = any(n > 1 and c not in own for pairs in sizes for c, n in pairs)
        return [operand] if made else []
    # Over the queries' tokens, if the weights are normalised over the queries.
    return [operand] if not mixes_features(value, summed) else []


def mixes_by_constants(operation: Operation) -> bool:
    """Whether constants, such as relative values, are all that its attention weights weight.

    The tokens are mixed in the scores. Similarities of samples, as of two towers, mix none.
    """
    if operation.kind not in (Kind.MUL, Kind.PRODUCT):
        return False
    for operand in weights_of_constants(operation):
        scores = scores_of(operand.value)
        if scores is not None and len(scores.carried()) > 1:
            return any(_holds_tokens(value) for _, value in scores.carried())
    return False


def _holds_tokens(value: Value) -> bool:
    """Whether a value has dimensions besides samples and features."""
    shape, known = value.shape, {*feature_dims(value)}
    return any(
        length > 1
        and dim not in known
        and not (value.samples is not None and runs_along(value.samples, shape, dim))
        for dim, length in enumerate(shape)
    )
