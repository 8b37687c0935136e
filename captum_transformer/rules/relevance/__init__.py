"""The relevance pass of Chefer et al. (CVPR 2021): layer-wise relevance propagation."""

from captum_transformer.rules.relevance.attention import attention_relevance
from captum_transformer.rules.relevance.rule import KEEP, relevance_rule

__all__ = ["KEEP", "attention_relevance", "relevance_rule"]
