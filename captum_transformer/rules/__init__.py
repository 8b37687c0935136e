"""What each operation does in the three backward passes: gradient, relevance, token flow."""

from captum_transformer.rules.attention import attention_relevance
from captum_transformer.rules.attn_lrp import attn_lrp_rule
from captum_transformer.rules.flow import TokenFlow
from captum_transformer.rules.gamma import Gamma
from captum_transformer.rules.gradient import ConservativeRule
from captum_transformer.rules.maps import attend_with
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import relevance_rule

__all__ = [
    "ConservativeRule",
    "Gamma",
    "TokenFlow",
    "attend_with",
    "attention_relevance",
    "attn_lrp_rule",
    "propagate",
    "relevance_rule",
]
