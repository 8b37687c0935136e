"""Attribution methods for Transformers as a Captum plugin, on unmodified models."""

from captum_transformer.attr import (
    AttentionGradCam,
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerMethod,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionGradCam",
    "AttentionRollout",
    "ConservativeLRP",
    "GenericAttentionRelevance",
    "PartialLRP",
    "RawAttention",
    "TransformerAttribution",
    "TransformerMethod",
]
