"""What each operation does in the three backward passes: gradient, relevance, token flow."""

from captum_transformer.rules.attention import attention_relevance
from captum_transformer.rules.flow import TokenFlow, attend_with
from captum_transformer.rules.gradient import ConservativeRule, Gamma
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import relevance_rule

__all__ = [
    "ConservativeRule",
    "Gamma",
    "TokenFlow",
    "attend_with",
    "attention_relevance",
    "propagate",
    "relevance_rule",
]
