"""Families of timm that join attention with convolutions, or write it down in another way."""

from __future__ import annotations

from typing import Any

from timm.models._efficientnet_builder import decode_arch_def
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.efficientvit_mit import EfficientVitLarge
from timm.models.hieradet_sam2 import HieraDet
from timm.models.metaformer import (
    Attention,
    LayerNorm2dNoBias,
    LayerNormNoBias,
    MetaFormer,
    SepConv,
)
from timm.models.mlp_mixer import MlpMixer
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from benchmarks.model_matrix.family import Family
from benchmarks.model_matrix.timm_families import (
    BOTH,
    GATED,
    GATES,
    MIXED,
    OWN,
    PLAIN,
    WINDOWED,
    timm_family,
    timm_made,
)

_SQUARES = "squared activations are not linear in what is positive"
_LINEAR = "linear attention multiplies several signals"
_STAGES = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}


def _residual_network(num_classes: int, attention: str | None, head: str) -> nn.Module:
    """Three bottlenecks, of which the last may attend in the place of its convolution."""
    blocks = [ByoBlockCfg(type="bottle", d=1, c=16, s=2, br=0.25) for _ in range(2)]
    last = "bottle" if attention is None else "self_attn"
    options = {"bottleneck": {"dim_head": 8}, "halo": {"block_size": 4, "halo_size": 1}}
    config = ByoModelCfg(
        blocks=(*blocks, ByoBlockCfg(type=last, d=1, c=128, s=1, br=0.25)),
        stem_chs=8,
        stem_pool="",
        head_type=head,
        self_attn_layer=attention or "",
        self_attn_kwargs=options.get(attention or "", {}),
        fixed_input_size=True,
    )
    return ByobNet(config, num_classes=num_classes, img_size=64)


def _multi_query(num_classes: int) -> nn.Module:
    stages = [
        ["cn_r1_k3_s2_e1_c8"],
        ["uir_r1_a3_k3_s2_e2_c16"],
        ["mqa_r1_k3_h2_s1_v2_d8_c16", "uir_r1_a0_k0_s2_e2_c16"],
        ["mha_r1_k3_h2_s1_d8_c16", "uir_r1_a0_k0_s1_e2_c16"],
    ]
    return MobileNetV3(
        decode_arch_def(stages), num_classes=num_classes, stem_size=8, num_features=16
    )


def _residual(name: str, attention: str | None, head: str = "classifier", **about: Any) -> Family:
    options = {"attention": attention, "head": head}
    return timm_made(name, _residual_network, 64, OWN, options, **about)


HYBRIDS = [
    timm_family(
        "ViT, convolutional stem",
        "vit_tiny_r_s16_p8_224",
        {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2},
        kind="convolutional stem",
    ),
    timm_family("ViT, relative positions", "vit_relpos_small_patch16_224"),
    timm_family(
        "ViT, mixed rotary embeddings",
        "vit_small_patch16_rope_mixed_224",
        needs="vit_small_patch16_rope_mixed_224",
    ),
    timm_family(
        "ViT of SAM",
        "samvit_base_patch16_224",
        {**PLAIN, "window_size": 2, "global_attn_indexes": (1,)},
    ),
    timm_made(
        "HieraDet of SAM 2",
        HieraDet,
        64,
        BOTH,
        {
            "embed_dim": 8,
            "stages": (1, 2, 1, 1),
            "window_spec": (8, 4, 4, 2),
            "global_att_blocks": (2,),
        },
    ),
    timm_family(
        "Perception Encoder", "vit_pe_core_tiny_patch16_384", needs="vit_pe_core_tiny_patch16_384"
    ),
    timm_family("BEiT-3", "beit3_base_patch16_224", needs="beit3_base_patch16_224"),
    timm_family("AIMv2", "aimv2_large_patch14_224", not_conserved=GATED),
    timm_family(
        "NaFlexViT",
        "naflexvit_base_patch16_map",
        needs="naflexvit_base_patch16_map",
        kind="patches by rearranging",
    ),
    timm_family(
        "Qwen3 ViT",
        "qwen3_vit_88m",
        {"embed_dim": 16, "depth": 2, "num_heads": 2},
        size=64,
        needs="qwen3_vit_88m",
    ),
    timm_family(
        "DeepSeek ViT",
        "deepseek_vit_412m",
        {"img_size": 56, "embed_dim": 16, "depth": 2, "num_heads": 2},
        not_conserved=GATED,
        needs="deepseek_vit_412m",
    ),
    timm_family(
        "SwinV2-CR",
        "swinv2_cr_tiny_224",
        WINDOWED,
        attentions=OWN,
    ),
    timm_family(
        "Twins-PCPVT",
        "twins_pcpvt_small",
        {
            "img_size": 64,
            "depths": (1, 1),
            "embed_dims": (8, 16),
            "num_heads": (1, 2),
            "sr_ratios": (4, 2),
            "mlp_ratios": (2, 2),
        },
    ),
    timm_family(
        "CoAtNet, TensorFlow's", "coatnet_0_224", MIXED, attentions=OWN, not_conserved=GATES
    ),
    timm_made(
        "CAFormer",
        MetaFormer,
        64,
        BOTH,
        {
            "depths": (1, 1, 1, 1),
            "dims": (8, 8, 32, 32),
            "token_mixers": [SepConv, SepConv, Attention, Attention],
            "norm_layers": [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
        },
        not_conserved=_SQUARES,
    ),
    timm_family(
        "TinyViT",
        "tiny_vit_5m_224",
        {
            **_STAGES,
            "num_heads": (1, 2, 2, 2),
            "window_sizes": (4, 4, 4, 4),
        },
        size=64,
    ),
    timm_family(
        "FastViT",
        "fastvit_sa12",
        {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 64)},
        size=64,
        not_conserved=GATES,
    ),
    timm_family(
        "EfficientViT, cascaded groups",
        "efficientvit_m0",
        {
            "img_size": 128,
            "embed_dim": (16, 16, 32),
            "key_dim": (8, 8, 8),
            "num_heads": (2, 2, 2),
            "depth": (1, 1, 1),
        },
        attentions=OWN,
        not_conserved=GATES,
    ),
    timm_made(
        "EfficientViT, ReLU linear attention",
        EfficientVitLarge,
        64,
        OWN,
        {
            "widths": (4, 8, 8, 16, 16),
            "depths": (1, 1, 1, 1, 1),
            "head_dim": 8,
            "head_widths": (16, 16),
        },
        kind="linear attention by a kernel",
    ),
    timm_family(
        "EfficientFormerV2",
        "efficientformerv2_s0",
        {"img_size": 64, **_STAGES, "num_vit": 1},
        attentions=OWN,
    ),
    timm_family(
        "SHViT",
        "shvit_s1",
        {
            "embed_dim": (16, 16, 32),
            "partial_dim": (8, 8, 8),
            "qk_dim": (8, 8, 8),
            "types": ("i", "s", "s"),
            "depth": (1, 1, 1),
        },
        size=128,
        not_conserved=GATES,
        needs="shvit_s1",
    ),
    timm_made("MobileNetV4, multi-query attention", _multi_query, 64, BOTH, {}),
    _residual("CLIP ResNet", None, "attn_abs", kind="attention pooling after convolutions"),
    _residual("BoTNet", "bottleneck"),
    _residual("HaloNet", "halo", kind="windows that overlap"),
    _residual("LambdaNet", "lambda", not_conserved=_LINEAR, kind="factorised attention"),
    timm_family(
        "SwiftFormer",
        "swiftformer_xs",
        {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16)},
        size=64,
        attentions=OWN,
        needs="swiftformer_xs",
    ),
    timm_made(
        "MLP-Mixer",
        MlpMixer,
        32,
        OWN,
        {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 2},
    ),
]
