"""Relevance through linear maps: the alpha-beta rule, and the z-B rule for pixels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.ledger import total, total_of_rows
from captum_transformer.rules.propagate import Shares, transposed, unsupported
from captum_transformer.rules.relevance.sparsity import DENSE, Sparsity
from captum_transformer.rules.relevance.weights import Weighting, exchanged
from captum_transformer.trace.numeric import EPSILON, in_full, ratio
from captum_transformer.trace.operation import Operand, Operation


def rounding(dtype: torch.dtype, terms: int) -> float:
    """How much of a sum's magnitude may be rounding."""
    return float(4 * torch.finfo(dtype).eps * max(terms, 1) ** 0.5)


def half_quotient(
    relevance: Tensor, product: Tensor, absolute: Tensor, terms: int
) -> tuple[Tensor, Tensor]:
    """Half of ``R / z+``, where ``z+ = sum max(x w, 0)``; zero where ``z+`` is rounding noise.

    ``R_x = x+ (s W+) + x- (s W-)`` with ``s = R / z+`` is ``x (h W) + |x| (h |W|)`` with
    ``h = s / 2``, so that no matrix needs to be split into its signs.

    Args:
        relevance: what arrives at the output.
        product: ``sum x w``, of the output's shape.
        absolute: ``sum |x w|``, of the same shape; overwritten.
        terms: how many terms are summed up.

    Returns:
        The half, and what of the relevance is lost thereby.
    """
    noise = rounding(product.dtype, terms)
    twice_positive = product + absolute
    vanishes = twice_positive <= absolute.mul_(2 * noise)
    half = (relevance / (twice_positive + 2 * EPSILON)).masked_fill_(vanishes, 0.0)
    return half, torch.addcmul(relevance, half, twice_positive, value=-1)


def linear_rule(
    operation: Operation, rows: Weighting, relevance: Tensor, sparsity: Sparsity = DENSE
) -> Shares:
    """The alpha-beta rule on rows that are multiplied by a matrix; the bias takes nothing.

    Args:
        operation: what multiplies them.
        rows: these, and the matrix.
        relevance: what arrives at the output.
        sparsity: that is zero outside these slices. One row counts then, or an entry of it.
    """
    signal, w = in_full(rows.signal), rows.matrix()
    outputs, inputs = w.shape
    row = next((s for s in sparsity if s.is_of_rows(outputs)), None)
    column = next((s.at for s in sparsity if s.axis.inner == 1 and s.axis.size == outputs), None)
    # A class alone saves little: there is one row for each sample then.
    columns = slice(None) if row is None or column is None else slice(column, column + 1)

    def counting(tensor: Tensor) -> Tensor:
        return (tensor if row is None else row.of(tensor).reshape(-1, outputs))[..., columns]

    before = None if row is None else row.among_rows(outputs, inputs)
    x = signal if before is None else before.of(signal).reshape(-1, inputs)
    w = w[columns]
    if operation.result is None or operation.result.dtype != x.dtype:
        product = F.linear(x, w)
    else:
        product = counting(operation.result.tensor)
        if rows.bias is not None:
            product = product - in_full(rows.bias)[columns]
    magnitude, weights = x.abs(), w.abs()
    absolute = F.linear(magnitude, weights)
    half, lost = half_quotient(counting(relevance).to(x.dtype), product, absolute, inputs)
    share = (half @ w).mul_(x).addcmul_(magnitude, half @ weights)
    lost = lost.sum(-1, keepdim=True)
    if row is not None and before is not None:
        share = before.filled(share, signal.shape)
        lost = row.among_rows(outputs, 1).filled(lost, (*signal.shape[:-1], 1))
    return Shares([share], {Reason.EPSILON: total_of_rows(operation.outputs[0], lost)})


def alpha_beta_rule(operation: Operation, relevance: Tensor) -> Shares:
    """The alpha-beta rule on any product of a signal with weights."""
    ((signal, _),) = operation.traced()
    x = in_full(signal)
    plain, absolute = without_bias(operation, _same), without_bias(operation, torch.abs)
    with torch.no_grad():
        product, magnitude = plain.replay([x])[0], absolute.replay([x.abs()])[0]
    terms = x.shape[-1] if x.ndim else 1
    half, lost = half_quotient(relevance, product, magnitude, terms)
    (share,) = transposed(plain, [x], [half])
    (share_of_magnitude,) = transposed(absolute, [x.abs()], [half])
    if share is None or share_of_magnitude is None:
        raise unsupported(operation, "the signal has no derivative")
    share = torch.addcmul(x * share, x.abs(), share_of_magnitude)
    return Shares([share], {Reason.EPSILON: total(operation.outputs[0], lost)})


def without_bias(operation: Operation, change: Callable[[Tensor], Tensor]) -> Operation:
    """The operation with its constants changed and what is added to it left out."""
    addend = operation.argument("bias")

    def changed(operand: Operand) -> Operand:
        if operand.value is not None or not operand.dtype.is_floating_point:
            return operand
        tensor = in_full(operand)
        return Operand(torch.zeros_like(tensor) if operand is addend else change(tensor), None)

    return exchanged(operation, changed)


def is_first_convolution(operation: Operation) -> bool:
    """Whether a convolution works on an input of the model itself."""
    ((_, value),) = operation.traced()
    return value.origin.operation is None


def z_box_rule(operation: Operation, relevance: Tensor) -> Shares:
    """The z-B rule for pixels, with each sample's own minimum and maximum as the box."""
    ((signal, _),) = operation.traced()
    x = in_full(signal)
    dims = tuple(range(1, x.ndim))
    low = x.amin(dims, keepdim=True).expand_as(x)
    high = x.amax(dims, keepdim=True).expand_as(x)
    parts = [
        (x, without_bias(operation, _same), 1),
        (low, without_bias(operation, lambda w: w.clamp(min=0)), -1),
        (high, without_bias(operation, lambda w: w.clamp(max=0)), -1),
    ]
    with torch.no_grad():
        whole = torch.as_tensor(sum(sign * part.replay([point])[0] for point, part, sign in parts))
    # Of an image of one colour nothing is left but rounding.
    largest = torch.maximum(low.abs(), high.abs())
    with torch.no_grad():
        magnitude = without_bias(operation, torch.abs).replay([largest])[0]
    terms = operation.arguments["weight"].size[1:].numel()
    quotient = ratio(relevance, whole)
    quotient.masked_fill_(whole.abs() <= magnitude * rounding(whole.dtype, terms), 0.0)
    result = torch.zeros_like(x)
    for point, part, sign in parts:
        (share,) = transposed(part, [point], [quotient])
        if share is not None:
            result = result + sign * point * share
    lost = torch.addcmul(relevance, quotient, whole, value=-1)
    return Shares([result], {Reason.EPSILON: total(operation.outputs[0], lost)})


def _same(weight: Tensor) -> Tensor:
    return weight
