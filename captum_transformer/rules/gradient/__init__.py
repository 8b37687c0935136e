"""Gradients that rules change: Ali et al. (2022), AttnLRP (2024) and GIM (2025)."""

from captum_transformer.rules.gradient.gamma import Gamma
from captum_transformer.rules.gradient.tables import (
    ATTN_LRP,
    attn_lrp,
    conservative_lrp,
    gim,
    libra,
)

__all__ = ["ATTN_LRP", "Gamma", "attn_lrp", "conservative_lrp", "gim", "libra"]
