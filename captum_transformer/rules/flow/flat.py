"""The flat rule: every entry that an output is made of gets an equal part of its share."""

import functools
import operator

import torch
from torch import Tensor

from captum_transformer.rules.flow.padding import of_signal
from captum_transformer.rules.propagate import rearranged, transposed, unsupported
from captum_transformer.rules.relevance.linear import without_bias
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operand, Operation, Value


def flat(share: Tensor, value: Value) -> Tensor:
    """Every feature of a token gets an equal part of the token's share, padding none."""
    whole = share.sum(-1, keepdim=True)
    present = of_signal(value, share.dtype, share.device)
    if present is None:
        return (whole / value.shape[-1]).expand(value.shape)
    return present * _quotient(whole, present.sum(-1, keepdim=True))


def receptive_field(operation: Operation, operand: Operand, value: Value, share: Tensor) -> Tensor:
    """Every entry of an output's receptive field gets an equal part of its share, padding none."""
    weight = next(o for o in operation.operands if o is not operand)
    groups: int = operation.argument("groups", 1)
    channels = operand.size[1]
    grouped = share.reshape(share.shape[0], groups, -1, *share.shape[2:]).sum(2)
    names = {"stride": 1, "padding": 0, "dilation": 1}
    filters = (groups, channels // groups)
    if operation.kind is Kind.TRANSPOSED_CONV:
        names |= {"output_padding": 0}
        filters = (channels, 1)
    ones = torch.ones(*filters, *weight.size[2:], dtype=share.dtype, device=share.device)
    arguments = {name: operation.argument(name, default) for name, default in names.items()}

    def count(signal: Tensor) -> Tensor:
        result: Tensor = operation.call(signal, ones, None, **arguments, groups=groups)
        return result

    present = of_signal(value, share.dtype, share.device)
    if present is None:
        present = torch.ones(1, *operand.size[1:], dtype=share.dtype, device=share.device)
    with torch.no_grad():
        counts = count(present)
    blank = torch.empty(operand.size, dtype=share.dtype, device=share.device, requires_grad=True)
    with torch.enable_grad():
        output = count(blank)
    # What a transposed convolution leaves blank between its strides is made of nothing.
    quotient = _quotient(grouped, counts)
    (result,) = torch.autograd.grad(output, blank, quotient, create_graph=share.requires_grad)
    return result * present


def pooled(operation: Operation, shares: list[Tensor | None]) -> list[Tensor | None]:
    """Each output's share, by the part that an entry has in it: all of it for a maximum.

    What was padded is no entry: the others of its window share alone.
    """
    points = [in_full(operand) for operand, _ in operation.traced()]
    share = shares[0]
    if len(points) != 1 or len(operation.outputs) != 1 or share is None:
        return transposed(operation, points, shares)
    present = None
    if operation.kind is Kind.POOL and operation.argument("kernel_size") is not None:
        ((_, value),) = operation.traced()
        present = of_signal(value, share.dtype, share.device)
    if present is None:
        present = torch.ones_like(points[0])
    with torch.no_grad():
        (whole,) = operation.replay([present])
    (part,) = transposed(operation, points, [_quotient(share, whole)])
    return [None if part is None else part * present]


def _quotient(share: Tensor, total: Tensor) -> Tensor:
    return torch.where(total == 0, torch.zeros_like(share), share / total)


def summed(operation: Operation, share: Tensor) -> Tensor:
    """The terms get equal parts; masked or weighted ones in proportion to their weight.

    Signals that were stacked to be added up, each with attention of its own, get it whole each, as
    the operands of an addition do.
    """
    ((_, value),) = operation.traced()
    share = share * _parallel_terms(operation, value)
    weights = _presence(value, share.dtype, share.device)
    with torch.no_grad():
        total = operation.replay([weights])[0]
    (part,) = rearranged(operation, [_quotient(share, total)])
    if part is None:
        raise unsupported(operation, "the sum does not depend on its operand")
    return weights * part


def _parallel_terms(operation: Operation, value: Value) -> int:
    """How many branches with attention of their own a sum adds up that were stacked; else one."""
    stack = value.operation
    if stack is None or stack.kind is not Kind.STACK:
        return 1
    if operation.dim(len(value.shape)) != stack.dim(len(value.shape), 0):
        return 1
    terms = [term for _, term in stack.traced()]
    for term in terms:
        others = functools.reduce(operator.or_, (t.attention for t in terms if t is not term), 0)
        if not term.attention & ~others:
            return 1
    return len(terms)


def summed_at_indices(operation: Operation, share: Tensor) -> list[Tensor | None]:
    """The same where indices say which sum each term belongs to, as with experts' outputs."""
    weights = [_presence(value, share.dtype, share.device) for _, value in operation.traced()]
    total = _terms_at_indices(operation, weights)
    quotient = torch.where(total == 0, torch.zeros_like(share), share / total)
    parts = transposed(operation, weights, [quotient])
    return [None if p is None else w * p for w, p in zip(weights, parts, strict=True)]


def _terms_at_indices(operation: Operation, weights: list[Tensor]) -> Tensor:
    """How many terms each sum has; the constant that they are added to is none."""
    with torch.no_grad():
        total: Tensor = operation.replay(weights)[0]
        constant: Tensor = operation.replay([torch.zeros_like(weight) for weight in weights])[0]
    return total - constant


def _presence(value: Value, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How much of the signal each entry carries: zero where a constant has taken its place."""
    operation = value.operation
    if operation is not None and operation.kind is Kind.SUM_AT_INDICES:
        terms = [_presence(source, dtype, device) for _, source in operation.traced()]
        return _terms_at_indices(operation, terms)
    if operation is not None and len(operation.traced()) == 1 and len(operation.outputs) == 1:
        ((_, source),) = operation.traced()
        if operation.kind is Kind.MUL:
            factors = [o for o in operation.operands if o.value is None]
            presence = _presence(source, dtype, device)
            for factor in factors:
                presence = presence * factor.tensor.to(dtype).abs()
            return presence.expand(value.shape)
        if operation.kind in MOVES or operation.kind is Kind.COPY:
            with torch.no_grad():
                ones = torch.ones(source.shape, dtype=dtype, device=device)
                present = operation.replay([_presence(source, dtype, device)])[0]
                absent = operation.replay([torch.zeros_like(ones)])[0]
                doubled = operation.replay([torch.full_like(ones, 2.0)])[0]
            moved = doubled != absent
            return torch.where(moved, present, torch.zeros_like(present))
    return torch.ones(value.shape, dtype=dtype, device=device)


def constant_product(operation: Operation, value: Value, share: Tensor) -> Tensor:
    """A product with constants: weights on features keep tokens apart, a matrix of tokens mixes."""
    product = operation.contraction()
    ((operand, _),) = operation.traced()
    if product is not None and product.summed(operand) == [len(value.shape) - 1]:
        return flat(share, value)
    absolute = without_bias(operation, torch.abs)
    ones = torch.ones(value.shape, dtype=share.dtype, device=share.device)
    with torch.no_grad():
        total = absolute.replay([ones])[0]
    (part,) = transposed(absolute, [ones], [_quotient(share, total)])
    if part is None:
        raise unsupported(operation, "the product does not depend on its operand")
    return part


def inner_product(operation: Operation, share: Tensor) -> list[Tensor]:
    """The share of each sum of products, spread evenly over the features that it sums over."""
    ones = [
        torch.ones(value.shape, dtype=share.dtype, device=share.device)
        for _, value in operation.traced()
    ]
    with torch.no_grad():
        terms = operation.replay(ones)[0]
    parts = transposed(operation, ones, [share / terms])
    return [part for part in parts if part is not None]
