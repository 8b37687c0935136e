"""What each operation does in each of the three backward passes: gradient, relevance, token flow."""

from captum_transformer.rules.flow import TokenFlow, attend_with
from captum_transformer.rules.gradient import ConservativeRule, Gamma
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import attention_relevance, relevance_rule

__all__ = [
    "ConservativeRule",
    "Gamma",
    "TokenFlow",
    "attend_with",
    "attention_relevance",
    "propagate",
    "relevance_rule",
]
