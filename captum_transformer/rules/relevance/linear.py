"""Relevance through linear maps: the alpha-beta rule, and the z-B rule for pixels."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.ledger import total
from captum_transformer.rules.propagate import Shares
from captum_transformer.rules.relevance.sparsity import DENSE, Sparsity
from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.numeric import EPSILON, in_full, ratio
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.storages import is_plain

Change = Callable[[Tensor], Tensor]
Magnitudes = dict[tuple[Operation, Sparsity], Tensor]
"""``sum |x w|`` of linear maps, by which of their rows are read; the same for all targets."""


def rounding(dtype: torch.dtype, terms: int) -> float:
    """Returns the fraction of a sum's magnitude that may be rounding."""
    return float(4 * torch.finfo(dtype).eps * max(terms, 1) ** 0.5)


@torch.no_grad()
def half_quotient(
    relevance: Tensor, product: Tensor, absolute: Tensor, terms: int
) -> tuple[Tensor, Tensor]:
    """Half of ``R / z+``, where ``z+ = sum max(x w, 0)``; zero where ``z+`` is rounding noise.

    ``R_x = x+ (s W+) + x- (s W-)`` with ``s = R / z+`` is ``x (h W) + |x| (h |W|)`` with
    ``h = s / 2``, so that no matrix needs to be split into its signs.

    Args:
        relevance: the relevance of the output.
        product: ``sum x w``, of the output's shape.
        absolute: ``sum |x w|``, of the same shape; overwritten.
        terms: how many terms are summed up.

    Returns:
        The half, and the relevance that is lost.
    """
    noise = rounding(product.dtype, terms)
    twice_positive = product + absolute
    vanishes = twice_positive <= absolute.mul_(2 * noise)
    divisor = torch.add(twice_positive, 2 * EPSILON, out=absolute)  # there is room for it
    half = (relevance / divisor).masked_fill_(vanishes, 0.0)
    return half, torch.addcmul(relevance, half, twice_positive, value=-1, out=absolute)


def alpha_beta(
    operation: Operation,
    relevance: Tensor,
    sparsity: Sparsity = DENSE,
    magnitudes: Magnitudes | None = None,
) -> Shares:
    """The alpha-beta rule on a product of a signal with weights; the bias takes nothing.

    Args:
        operation: the product.
        relevance: the relevance of its output.
        sparsity: the relevance is zero outside these slices, so only these are multiplied.
        magnitudes: those of earlier targets; new ones are added.
    """
    ((signal, _),), found = operation.traced(), operation.contraction()
    x = in_full(signal)
    relevance = relevance.to(x.dtype)
    if found is None or not _is_plain(operation, found, signal):
        product, back = applied(operation, x)
        magnitude, back_of_magnitude = applied(operation, x.abs(), torch.abs)
        half, lost = half_quotient(relevance, product, magnitude, _terms(operation))
        share = torch.addcmul(x * back(half), x.abs(), back_of_magnitude(half))
        return Shares([share], {Reason.EPSILON: total(operation.outputs[0], lost)})
    own, after = found.of(signal), found.output
    dims = ((place.dim(relevance.shape), place.at) for place in sparsity)
    at = {after[dim]: index for dim, index in dims if dim is not None}
    others = [factor for factor in found.factors if factor is not signal]
    letters = [found.of(factor) for factor in others]
    weights = [_there(in_full(w).to(x.dtype), found.of(w), at) for w in others]
    if (scale := operation.argument("alpha", 1)) != 1:
        weights[0] = weights[0] * scale
    sizes = [weight.abs() for weight in weights]
    x = _there(x, own, at)
    size = x.abs()
    kept = None if at else _without_addend(operation, found, x.dtype)
    product = _multiplied(x, own, weights, letters, after) if kept is None else kept
    kept_sum = None if magnitudes is None else magnitudes.get((operation, sparsity))
    absolute = _multiplied(size, own, sizes, letters, after) if kept_sum is None else kept_sum
    if magnitudes is not None:
        magnitudes[operation, sparsity] = absolute
        absolute = absolute.clone()  # it will be overwritten
    half, lost = half_quotient(_there(relevance, after, at), product, absolute, _terms(operation))
    share = _multiplied(half, after, weights, letters, own).sum_to_size(x.shape).mul_(x)
    of_size = _multiplied(half, after, sizes, letters, own).sum_to_size(x.shape)
    share.addcmul_(size, of_size)
    lost = total(operation.outputs[0], _filled(lost, after, at, relevance.shape))
    return Shares([_filled(share, own, at, signal.size)], {Reason.EPSILON: lost})


def _is_plain(operation: Operation, found: Contraction, signal: Operand) -> bool:
    """Returns whether an einsum describes the product: no index selects rows or is only summed."""
    letters = (of for f, of in zip(found.factors, found.letters, strict=True) if f is not signal)
    known = set(found.output).union(*letters)
    return operation.argument("index") is None and known.issuperset(found.of(signal))


def _multiplied(
    x: Tensor, own: str, weights: Sequence[Tensor], letters: Sequence[str], after: str
) -> Tensor:
    """Returns the product with these letters; rows and a matrix are multiplied without einsum."""
    if len(weights) == 1 and own and after and after[:-1] == own[:-1]:
        if letters[0] == own[-1] + after[-1]:
            return x @ weights[0]
        if letters[0] == after[-1] + own[-1]:
            return x @ weights[0].T
    return torch.einsum(f"{own},{','.join(letters)}->{after}", x, *weights)


def _there(tensor: Tensor, letters: str, at: Mapping[str, int]) -> Tensor:
    """Narrows the dimensions with the letters in ``at`` to the one index that counts."""
    for dim, letter in enumerate(letters):
        if letter in at and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, at[letter], 1)
    return tensor


def _filled(part: Tensor, letters: str, at: Mapping[str, int], shape: torch.Size) -> Tensor:
    """Inverts `_there`, with zeros elsewhere."""
    if at:
        whole = part.new_zeros(shape)
        _there(whole, letters, at).copy_(part)
        return whole
    return part


def _without_addend(operation: Operation, found: Contraction, dtype: torch.dtype) -> Tensor | None:
    """Returns the model's own product without what is added to it, or None if it isn't kept."""
    result, addend = operation.result, found.addend
    if result is None or result.dtype != dtype or operation.argument("beta", 1) != 1:
        return None
    if not all(is_plain(factor.given) for factor in found.factors):
        return None  # a kernel for quantised weights rounds activations, too
    return result.tensor if addend is None else result.tensor - in_full(addend)


def _terms(operation: Operation) -> int:
    """Returns how many terms each entry of a linear map sums up."""
    ((signal, _),), found = operation.traced(), operation.contraction()
    if found is None:
        return math.prod(operation.arguments["weight"].size[1:])
    return math.prod(signal.size[dim] for dim in found.summed(signal))


def applied(
    operation: Operation, x: Tensor, change: Change = torch.clone
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Applies a linear map to a signal without its bias; returns the result and the transpose.

    Args:
        operation: the map.
        x: the signal.
        change: is applied to the weights first.
    """
    addend = operation.argument("bias")

    def tensor(operand: Operand) -> Tensor:
        if operand.value is not None:
            return leaf
        if not operand.dtype.is_floating_point:
            return operand.tensor
        weight = in_full(operand)
        return torch.zeros_like(weight) if operand is addend else change(weight)

    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        output: Tensor = operation.run(tensor)
    return output.detach(), lambda r: torch.autograd.grad(output, leaf, r.to(output.dtype))[0]


def z_box(operation: Operation, relevance: Tensor) -> Shares:
    """The z-B rule for pixels, with each sample's own minimum and maximum as the box."""
    ((signal, _),) = operation.traced()
    x = in_full(signal)
    dims = tuple(range(1, x.ndim))
    low = x.amin(dims, keepdim=True).expand_as(x)
    high = x.amax(dims, keepdim=True).expand_as(x)
    points = x, -low, -high
    weights = torch.clone, lambda w: w.clamp(min=0), lambda w: w.clamp(max=0)
    parts = [applied(operation, *pair) for pair in zip(points, weights, strict=True)]
    whole = torch.stack([product for product, _ in parts]).sum(0)
    # For an image of one colour nothing but rounding is left.
    magnitude, _ = applied(operation, torch.maximum(low.abs(), high.abs()), torch.abs)
    quotient = ratio(relevance, whole)
    noise = rounding(whole.dtype, _terms(operation))
    quotient.masked_fill_(whole.abs() <= magnitude * noise, 0.0)
    shares = [x * back(quotient) for x, (_, back) in zip(points, parts, strict=True)]
    lost = torch.addcmul(relevance, quotient, whole, value=-1)
    return Shares([torch.stack(shares).sum(0)], {Reason.EPSILON: total(operation.outputs[0], lost)})
