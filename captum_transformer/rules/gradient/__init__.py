"""Gradients with parts held constant: Ali et al. (ICML 2022) and AttnLRP (ICML 2024)."""

from captum_transformer.rules.gradient.attn_lrp import attn_lrp_rule
from captum_transformer.rules.gradient.conservative import ConservativeRule
from captum_transformer.rules.gradient.gamma import Gamma

__all__ = ["ConservativeRule", "Gamma", "attn_lrp_rule"]
