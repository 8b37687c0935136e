"""Attribution methods for Transformers as a Captum plugin, on unmodified models."""

from captum_transformer.account import Account
from captum_transformer.attr import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    BiLRP,
    ConservativeLRP,
    FullGradPlus,
    GenericAttentionRelevance,
    LayerRelevance,
    LeGrad,
    LibraGrad,
    PairRelevance,
    PartialLRP,
    RawAttention,
    RelevancePatching,
    TransformerAttribution,
    TransformerMethod,
)
from captum_transformer.calling import Contrast
from captum_transformer.captured import Captured, load_captured
from captum_transformer.description import Description, describe

__version__ = "0.1.0"

__all__ = [
    "GIM",
    "Account",
    "AttentionGradCam",
    "AttentionRollout",
    "AttnLRP",
    "BiLRP",
    "Captured",
    "ConservativeLRP",
    "Contrast",
    "Description",
    "FullGradPlus",
    "GenericAttentionRelevance",
    "LayerRelevance",
    "LeGrad",
    "LibraGrad",
    "PairRelevance",
    "PartialLRP",
    "RawAttention",
    "RelevancePatching",
    "TransformerAttribution",
    "TransformerMethod",
    "describe",
    "load_captured",
]
