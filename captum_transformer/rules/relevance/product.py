"""Relevance through products in every spelling, convolutions, and attention."""

from torch import Tensor

from captum_transformer.rules.propagate import Shares
from captum_transformer.rules.relevance.addition import with_addend
from captum_transformer.rules.relevance.attention import attention_rule
from captum_transformer.rules.relevance.homogeneous import z_rule
from captum_transformer.rules.relevance.linear import (
    alpha_beta_rule,
    is_first_convolution,
    linear_rule,
    z_box_rule,
)
from captum_transformer.rules.relevance.sparsity import DENSE, Sparsity
from captum_transformer.rules.relevance.weights import weighting
from captum_transformer.trace.operation import Operation


def product(operation: Operation, relevance: Tensor, sparsity: Sparsity = DENSE) -> Shares:
    """A signal that is multiplied by weights, or signals with each other; what is added to them.

    The bias of a linear map takes nothing.

    Args:
        operation: the product.
        relevance: what arrives at it.
        sparsity: that is zero outside these slices.
    """
    if _adds_a_term(operation):
        return with_addend(operation, relevance, _multiplied)
    return _multiplied(operation, relevance, sparsity)


def _multiplied(operation: Operation, relevance: Tensor, sparsity: Sparsity = DENSE) -> Shares:
    if operation.attention is not None:
        return attention_rule(operation, relevance)
    if len(operation.traced()) > 1:
        return z_rule(operation, relevance, degree=len(operation.traced()))
    rows = weighting(operation)
    if rows is None:
        return alpha_beta_rule(operation, relevance)
    return linear_rule(operation, rows, relevance, sparsity)


def convolution(operation: Operation, relevance: Tensor) -> Shares:
    """As a product; on the input itself pixels are known to lie in a box."""
    if len(operation.traced()) == 1 and is_first_convolution(operation):
        return z_box_rule(operation, relevance)
    return product(operation, relevance)


def _adds_a_term(operation: Operation) -> bool:
    """Whether what is added to a product is more than the bias of a linear map."""
    addend, traced = operation.argument("bias"), operation.traced()
    if addend is None:
        return False
    return len(traced) > 1 or addend is traced[0][0]
