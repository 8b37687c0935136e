"""The relevance pass of Chefer et al. (CVPR 2021): layer-wise relevance propagation."""

from captum_transformer.rules.relevance.attention import attention_relevance
from captum_transformer.rules.relevance.rule import TABLE, with_sparsity

__all__ = ["TABLE", "attention_relevance", "with_sparsity"]
