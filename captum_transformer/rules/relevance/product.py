"""Relevance through products in every spelling, convolutions, and attention."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.ledger import added_up
from captum_transformer.rules.propagate import Shares, unsupported
from captum_transformer.rules.relevance.addition import divided
from captum_transformer.rules.relevance.attention import attention_rule
from captum_transformer.rules.relevance.bias import adds_term, applies_weights
from captum_transformer.rules.relevance.homogeneous import z_rule
from captum_transformer.rules.relevance.linear import alpha_beta, applied, z_box
from captum_transformer.rules.relevance.totals import evenly, fitted, require_whole
from captum_transformer.trace.kinds import CONVOLUTIONS, Kind, Role
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.statistics import signal_of

# Distributes the relevance of a product with weights.
LinearRule = Callable[[Operation, Tensor], Shares]


def product(
    operation: Operation,
    relevance: Tensor,
    of_linear: LinearRule = alpha_beta,
) -> Shares:
    """Distributes the relevance of a product with weights or of signals, and of what is added.

    The bias of a linear map takes nothing. Anything else that is added in the same function is a
    term of an addition; the product is the other term.

    Args:
        operation: the product.
        relevance: the relevance of its output.
        of_linear: the rule for products with weights.
    """
    if (shares := evenly(operation, relevance)) is not None:
        return shares
    if not adds_term(operation):
        return _multiplied(operation, relevance, of_linear)
    addend = operation.arguments["bias"]
    zeros = Operand(torch.zeros(addend.size, dtype=addend.dtype, device=addend.device), None)
    alone = _exchanged(operation, lambda operand: zeros if operand is addend else operand)
    alone.result = None
    with torch.no_grad():
        whole, multiplied = (o.run(lambda x: x.like(relevance.dtype)) for o in (operation, alone))
    values = [value for _, value in operation.traced()] if len(operation.traced()) == 2 else []
    parts, sums, lost = divided(operation, whole - multiplied, multiplied, relevance, values)
    of_product = Shares([], {Reason.ADDED: sums[1]})
    if alone.traced():
        of_product = _multiplied(alone, parts[1])
    received = {id(o): s for (o, _), s in zip(alone.traced(), of_product, strict=True)}
    received[id(addend)] = _of_addend(operation, parts[0], addend)
    taken = {Reason.EPSILON: added_up([lost, of_product.taken.get(Reason.EPSILON, lost * 0)])}
    if addend.value is None:
        taken[Reason.ADDED] = sums[0]
    return Shares((received[id(o)] for o, _ in operation.traced()), of_product.taken | taken)


def _of_addend(operation: Operation, share: Tensor, addend: Operand) -> Tensor:
    """Sums over dimensions that the addend was broadcast along; convolutions add by channel."""
    if operation.kind not in CONVOLUTIONS:
        return fitted(share, addend)
    channels = share.ndim - len(operation.argument("weight").size) + 1
    return share.sum([dim for dim in range(share.ndim) if dim != channels])


def _multiplied(
    operation: Operation,
    relevance: Tensor,
    of_linear: LinearRule = alpha_beta,
) -> Shares:
    if operation.attention is not None:
        return attention_rule(operation, relevance)
    traced, are_signals = operation.traced(), signal_of(operation)
    if are_signals is not None:
        return _divided(operation, relevance, are_signals)
    if operation.kind is Kind.PRODUCT and operation.contraction() is None:
        raise unsupported(
            operation,
            "it takes a diagonal of one of its factors",
            "Take that first, as by `x.diagonal(dim1=-2, dim2=-1)`; ",
        )
    if len(traced) > 1:
        require_whole(operation)
        return z_rule(operation, relevance, degree=len(traced))
    ((signal, _),), found = traced, operation.contraction()
    if found is not None and not applies_weights(found, signal):
        if not found.output:
            raise unsupported(
                operation,
                "for a single row it is unknown whether it applies weights, as a linear layer, or "
                "selects a score",
                "Call `F.linear`, or multiply the rows of all samples at once; ",
            )
        if any(set(letters) - set(found.output) for letters in found.letters):
            return z_rule(operation, relevance)
        # Each entry is an entry of the signal, whatever number multiplies it, as in `addcmul`.
        others = {name: given for name, given in operation.kwargs.items() if name != "value"}
        moved = applied(operation.changed(kwargs=others), in_full(signal), torch.ones_like)
        return Shares([moved[1](relevance)])
    return of_linear(operation, relevance)


def _divided(operation: Operation, relevance: Tensor, are_signals: Sequence[bool]) -> Shares:
    """Distributes relevance to signals only: divisors, as of a norm, take nothing."""
    divisors = {o for (o, _), one in zip(operation.traced(), are_signals, strict=True) if not one}

    def held(operand: Operand) -> Operand:
        return Operand(operand.tensor, None, Role.STATISTIC) if operand in divisors else operand

    of_signals = _multiplied(_exchanged(operation, held), relevance)
    shares = iter(of_signals)
    return Shares((next(shares) if one else None for one in are_signals), of_signals.taken)


def convolution(operation: Operation, relevance: Tensor) -> Shares:
    """Treats a convolution as a product, or by the z-B rule if it reads the input's pixels."""
    ((_, value), *others) = operation.traced()
    if not others and value.origin.operation is None:
        return z_box(operation, relevance)
    return product(operation, relevance)


def _exchanged(operation: Operation, change: Callable[[Operand], Operand]) -> Operation:
    """Returns the operation with changed operands, such as a constant in place of a signal."""
    new = {operand: change(operand) for operand in operation.operands}
    args, kwargs, arguments = (
        mapped(new.__getitem__, Operand, nested)
        for nested in (operation.args, operation.kwargs, operation.arguments)
    )
    return operation.changed(
        args=args, kwargs=kwargs, arguments=arguments, operands=list(new.values())
    )
