"""The attribution methods, one per file."""

from captum_transformer.attr.attention_grad_cam import AttentionGradCam
from captum_transformer.attr.attention_rollout import AttentionRollout
from captum_transformer.attr.attn_lrp import AttnLRP
from captum_transformer.attr.bilrp import BiLRP, PairRelevance
from captum_transformer.attr.conservative_lrp import ConservativeLRP
from captum_transformer.attr.generic_attention_relevance import GenericAttentionRelevance
from captum_transformer.attr.gim import GIM
from captum_transformer.attr.layer_relevance import LayerRelevance
from captum_transformer.attr.legrad import LeGrad
from captum_transformer.attr.libra import FullGradPlus, LibraGrad
from captum_transformer.attr.partial_lrp import PartialLRP
from captum_transformer.attr.raw_attention import RawAttention
from captum_transformer.attr.relevance_patching import RelevancePatching
from captum_transformer.attr.transformer_attribution import TransformerAttribution
from captum_transformer.attr.transformer_method import TransformerMethod

__all__ = [
    "GIM",
    "AttentionGradCam",
    "AttentionRollout",
    "AttnLRP",
    "BiLRP",
    "ConservativeLRP",
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
]
