"""Gradients with parts held constant: Ali et al. (ICML 2022) and AttnLRP (ICML 2024)."""

from captum_transformer.rules.gradient.gamma import Gamma
from captum_transformer.rules.gradient.tables import ATTN_LRP, conservative_lrp

__all__ = ["ATTN_LRP", "Gamma", "conservative_lrp"]
