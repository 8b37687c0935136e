"""Relevance through products in every spelling, convolutions, and attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_transformer.rules.propagate import Shares, transposed
from captum_transformer.rules.relevance.addition import with_addend
from captum_transformer.rules.relevance.attention import attention_rule
from captum_transformer.rules.relevance.bias import adds_term
from captum_transformer.rules.relevance.homogeneous import z_rule
from captum_transformer.rules.relevance.linear import (
    alpha_beta_rule,
    is_first_convolution,
    linear_rule,
    without_bias,
    z_box_rule,
)
from captum_transformer.rules.relevance.sparsity import DENSE, Sparsity
from captum_transformer.rules.relevance.weights import applies_weights, exchanged, weighting
from captum_transformer.trace.kinds import Role
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.statistics import signal_of


def product(operation: Operation, relevance: Tensor, sparsity: Sparsity = DENSE) -> Shares:
    """A signal that is multiplied by weights, or signals with each other; what is added to them.

    The bias of a linear map takes nothing.

    Args:
        operation: the product.
        relevance: what arrives at it.
        sparsity: that is zero outside these slices.
    """
    if adds_term(operation):
        return with_addend(operation, relevance, _multiplied)
    return _multiplied(operation, relevance, sparsity)


def _multiplied(operation: Operation, relevance: Tensor, sparsity: Sparsity = DENSE) -> Shares:
    if operation.attention is not None:
        return attention_rule(operation, relevance)
    traced, are_signals = operation.traced(), signal_of(operation)
    if are_signals is not None:
        return _divided(operation, relevance, are_signals)
    if len(traced) > 1:
        return z_rule(operation, relevance, degree=len(traced))
    ((signal, _),), found = traced, operation.contraction()
    if found is not None and not applies_weights(found, signal):
        if any(set(letters) - set(found.output) for letters in found.letters):
            return z_rule(operation, relevance)
        ones = without_bias(operation, torch.ones_like)
        return Shares(transposed(ones, [in_full(signal)], [relevance]))
    rows = weighting(operation)
    if rows is None:
        return alpha_beta_rule(operation, relevance)
    return linear_rule(operation, rows, relevance, sparsity)


def _divided(operation: Operation, relevance: Tensor, are_signals: Sequence[bool]) -> Shares:
    """What divides a signal in a norm takes nothing, as in a quotient."""
    divisors = {o for (o, _), one in zip(operation.traced(), are_signals, strict=True) if not one}

    def held(operand: Operand) -> Operand:
        return Operand(operand.tensor, None, Role.STATISTIC) if operand in divisors else operand

    of_signals = _multiplied(exchanged(operation, held), relevance)
    shares = iter(of_signals)
    return Shares((next(shares) if one else None for one in are_signals), of_signals.taken)


def convolution(operation: Operation, relevance: Tensor) -> Shares:
    """As a product; on the input itself pixels are known to lie in a box."""
    if len(operation.traced()) == 1 and is_first_convolution(operation):
        return z_box_rule(operation, relevance)
    return product(operation, relevance)
