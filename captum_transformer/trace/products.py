"""Products, in whichever operations they are written.

A product that is summed over nothing is one of entries, as by ``*``, and of one factor it is a
move or a sum. What is added to a product of several signals is added, as by ``+``. They are traced
as these, so that rules meet them in one form. Entries that are multiplied and then summed are a
product of matrices. Values of attention that have several dimensions of features are multiplied
with one.
"""

import functools
import operator
import string
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.dimensions import passage
from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import BY_ENTRY, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value, lengths_of

_PRODUCT = Kind.PRODUCT  # read for each operation; members of enums are slow to look up
_SCALES = frozenset({Kind.MUL, Kind.DIV, Kind.COPY})


def written_out(
    operation: Operation,
) -> Callable[[AbstractContextManager[object]], Tensor] | None:
    """Returns a function that computes a product by simpler operations, or None if it is simple.

    The function gets the trace that records them. Its result is that of the operation to the last
    bit.

    Args:
        operation: the operation, before it runs.
    """
    if operation.kind is not _PRODUCT or "out" in operation.kwargs:
        return None
    product = operation.contraction()
    if product is None:
        return None
    signals = [factor for factor in product.factors if factor.value is not None]
    alone = len(product.factors) == 1
    of_entries = alone or not any(product.summed(factor) for factor in product.factors)
    adds = operation.function.entry.parameters[:1] == ("bias",) and len(signals) > 1
    added = product.addend if adds or of_entries else None
    values = None if of_entries or added is not None else _values_in_parts(product)
    if not of_entries and added is None and values is None:
        return None

    def run(trace: AbstractContextManager[object]) -> Tensor:
        if values is None and added is None:
            with trace:
                return _of_entries(product)
        with torch.no_grad():
            exact: Tensor = operation.run(lambda operand: operand.given)
        with trace:
            if added is None:
                result = _of_entries(product) if values is None else _of_values(product, values)
            else:
                result = _of_entries(product) if of_entries else _summed(product)
                alpha = operation.argument("alpha", operation.argument("value", 1))
                result = result if alpha == 1 else result * alpha
                given, beta = added.given, operation.argument("beta", 1)
                if beta:  # with a factor of zero, not even infinities count
                    result = (given if beta == 1 else given * beta) + result
                result = result.to(exact.dtype)  # under autocast the addend may have another one
                result = given.copy_(result) if operation.function.inplace else result
        result.data.copy_(exact)  # its kernel rounds once
        return result

    return run


def _values_in_parts(product: Contraction) -> int | None:
    """Returns which factor is values of attention with several dimensions of features, or None.

    An example are the points of proteins, ``einsum("bij,bjpc->bipc", weights, points)``.
    """
    if len(product.factors) != 2:
        return None
    for values, weights in ((1, 0), (0, 1)):
        applied = product.factors[weights].value
        if applied is None or applied.keys is None:
            continue
        keys = applied.keys.dim(applied.shape)
        of_weights, letters = product.letters[weights], product.letters[values]
        features = _made_by(product, values)
        summed = [c for c in of_weights if c in letters and c not in product.output]
        if len(features) > 1 and keys is not None and summed == [of_weights[keys]]:
            return values
    return None


def _made_by(product: Contraction, values: int) -> str:
    """Returns the letters of the output that only one of two factors has."""
    return "".join(
        c
        for c in product.letters[values]
        if c in product.output and c not in product.letters[1 - values]
    )


def _of_values(product: Contraction, values: int) -> Tensor:
    """Multiplies weights with values whose features are in one dimension, and separates them."""
    weights, own = product.letters[1 - values], product.letters[values]
    features = _made_by(product, values)
    ahead, one = "".join(c for c in own if c not in features), features[0]
    tensor = product.factors[values].given.permute([own.index(c) for c in ahead + features])
    sizes, joined = tensor.shape[len(ahead) :], tensor.flatten(len(ahead))
    left = "".join(c for c in product.output if c not in features)
    equation = f"{weights},{ahead}{one}->{left}{one}"
    result: Tensor = torch.einsum(equation, product.factors[1 - values].given, joined)
    result = result.reshape(*result.shape[:-1], *sizes)
    made = left + features
    return result if made == product.output else result.permute([*map(made.index, product.output)])


def _of_entries(product: Contraction) -> Tensor:
    """Multiplies factors whose dimensions are all in the output, or sums up a single one."""
    factors = []
    for factor, letters in zip(product.factors, product.letters, strict=True):
        tensor, own = factor.given, [c for c in product.output if c in letters]
        if summed := product.summed(factor):
            tensor = tensor.sum(summed)
        left = [c for c in letters if c in own]
        if left != own:
            tensor = tensor.permute([left.index(c) for c in own])
        first = product.output.index(own[0]) if own else 0
        for dim, c in enumerate(product.output[first:]):
            if c not in letters:
                tensor = tensor.unsqueeze(dim)
        factors.append(tensor)
    result: Tensor = functools.reduce(operator.mul, factors)
    return result


def _summed(product: Contraction) -> Tensor:
    left, right = (factor.given for factor in product.factors)
    if len(product.summed(product.factors[0])) == 1:
        return left @ right
    return torch.einsum(f"{','.join(product.letters)}->{product.output}", left, right)


def lengths(factor: Operand) -> Sequence[int]:
    """Returns the lengths of dimensions, one for those along which entries were repeated."""
    if (value := factor.value or factor.tokens) is not None:
        return lengths_of(value)
    return [n if step else 1 for n, step in zip(factor.size, factor.given.stride(), strict=True)]


def summed_product(
    operation: Operation, ndim: int | None, sizes: Callable[[Operand], Sequence[int]] = lengths
) -> tuple[Operation, Contraction] | None:
    """Returns the product of entries that a sum or mean adds up, and both as one contraction.

    Numbers that multiply it, as in a mean, are left out.

    Args:
        operation: the sum.
        ndim: the number of dimensions of its output, or None before it runs.
        sizes: returns the lengths of a factor's dimensions, one if it is broadcast.
    """
    if operation.kind not in (Kind.SUM, Kind.MEAN) or len(operation.traced()) != 1:
        return None
    ((_, value),) = operation.traced()
    made, dims = value.operation, operation.along(len(value.shape))
    while made is not None and made.kind in _SCALES and len(made.operands) == 1:
        made = made.traced()[0][1].operation
    if made is None or made.kind is not Kind.MUL or len(made.operands) != 2 or not dims:
        return None
    kept = bool(operation.argument("keepdim"))
    if kept and len(dims) > 1:
        return None
    if ndim not in (None, len(value.shape) - len(dims) * (not kept)):
        return None  # a cumulative sum
    missing = [len(value.shape) - len(factor.size) for factor in made.operands]
    one, other = ((1,) * n + tuple(sizes(f)) for n, f in zip(missing, made.operands, strict=True))
    terms = _letters(one, other)[missing[0] :], _letters(other, one)[missing[1] :]
    # If the dimension that is summed over is kept, the output has an entry of a broadcast one.
    left = next((c for c in "".join(terms) if c.islower()), "z") if kept else ""
    whole = string.ascii_uppercase[: len(value.shape)]
    output = "".join(left if dim in dims else c for dim, c in enumerate(whole))
    return made, Contraction(tuple(made.operands), terms, output)


def as_product(
    operation: Operation,
    made: Operation,
    factors: tuple[Operand, ...],
    equation: str,
    **changes: object,
) -> Operation:
    """Returns a sum or mean of entries that were multiplied as the product that it completes.

    Args:
        operation: the sum or mean.
        made: the product of entries, which isn't on the way back any more.
        factors: what was multiplied.
        equation: the product as an einsum.
        changes: further attributes of the operation.
    """
    dim = operation.along(max(len(factor.size) for factor in factors))
    keepdim = bool(operation.argument("keepdim"))
    reduce = torch.mean if operation.kind is Kind.MEAN else torch.sum

    def call(one: Tensor, other: Tensor) -> Tensor:
        return reduce(one * other, dim, keepdim=keepdim)

    return operation.changed(
        function=Function("weighted sum", Kind.PRODUCT, call),
        kind=Kind.PRODUCT,
        args=factors,
        kwargs={},
        operands=list(factors),
        arguments={"operands": factors, "equation": equation},
        call=call,
        refusal=made.refusal or operation.refusal,
        refused=made.refused or operation.refused,
        **changes,
    )


def repeats_signal(operation: Operation) -> bool:
    """Whether it multiplies each entry of its only signal with several entries of a constant."""
    traced = operation.traced()
    if len(traced) != 1:
        return False
    own = traced[0][0].size[::-1]
    return any(
        length > 1 and (place >= len(own) or own[place] == 1)
        for other in operation.operands
        for place, length in enumerate(other.size[::-1])
    )


def _letters(sizes: Sequence[int], others: Sequence[int]) -> str:
    """Returns the letters of a factor of entries; what is broadcast has letters of its own."""
    letters = zip(string.ascii_uppercase, sizes, others, strict=False)
    return "".join(c.lower() if n == 1 < repeated else c for c, n, repeated in letters)


def contraction_of(operation: Operation, output: Value) -> Contraction | None:
    """Returns the product that an operation computes, or completes as a sum, or None."""
    found = summed_product(operation, len(output.shape))
    return operation.contraction() if found is None else found[1]


def factors_of(operation: Operation, output: Value) -> list[tuple[Operand, list[int]]] | None:
    """Returns what is multiplied, compared or added up in pairs, or None for other operations.

    Returns:
        The operands, each with the dimensions of the output that it doesn't have.
    """
    product = contraction_of(operation, output)
    if product is not None:
        return [(factor, product.made(factor)) for factor in product.factors]
    carried = [operand for operand, _ in operation.carried()]
    if len(carried) != 2 or len(operation.operands) != 2:
        return None
    dims = range(len(output.shape))
    if operation.kind is Kind.DISTANCE:
        places = [passage(operation, operand, len(dims)).to for operand in carried]
        lacking = [[dim for dim in dims if dim not in to] for to in places]
    elif operation.kind in BY_ENTRY:
        padded = [[1] * (len(dims) - len(one.size)) + list(lengths(one)) for one in carried]
        lacking = [[d for d in dims if own[d] == 1 < output.shape[d]] for own in padded]
    else:
        return None
    return list(zip(carried, lacking, strict=True)) if all(lacking) else None
