"""Families of timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.layers import set_fused_attn
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.crossvit import CrossVit
from timm.models.gcvit import GlobalContextVit
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.volo import VOLO
from torch import nn

from benchmarks.model_matrix.family import CLASSES, Case, Family, drawn, with_random_weights

PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
WINDOWED = {
    "img_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 2),
}
MIXED = {
    "img_size": 64,
    "embed_dim": (32, 32, 32, 32),
    "depths": (1, 1, 1, 1),
    "stem_width": (8, 8),
}
SHORT = {**MIXED, "embed_dim": (32, 32), "depths": (1, 1)}
GATED = "gated units multiply two signals"
GATES = "squeeze-and-excitation multiplies two signals"
BOTH = ("sdpa", "eager")
OWN = ("eager",)


def _case(make: Callable[[], nn.Module], size: int, attention: str) -> Case:
    set_fused_attn(enable=attention == "sdpa")
    try:
        model = with_random_weights(make())
    finally:
        set_fused_attn(enable=True)
    return Case(model, drawn(2, 3, size, size, seed=1), ([1, 4], [3, 0], [2, 2]))


def timm_made(
    name: str,
    make: Callable[..., nn.Module],
    size: int,
    attentions: tuple[str, ...],
    options: dict[str, Any],
    **about: Any,
) -> Family:
    """A family from a function or class that makes the model."""
    build = partial(_case, partial(make, num_classes=CLASSES, **options), size)
    return Family("timm", name, build, attentions, **about)


def timm_family(
    name: str,
    variant: str,
    options: dict[str, Any] | None = None,
    *,
    size: int | None = None,
    attentions: tuple[str, ...] = BOTH,
    **about: Any,
) -> Family:
    """A family from a name that timm has for the model."""
    options = PLAIN if options is None else options
    size = size or options["img_size"]
    return timm_made(name, partial(timm.create_model, variant), size, attentions, options, **about)


def _mobile(block: str) -> ByoModelCfg:
    """Two stages of convolutions and a Transformer, as in timm's MobileViTs but smaller."""
    options: dict[str, Any] = {"transformer_depth": 2, "patch_size": 2}
    if block == "mobilevit":
        options["transformer_dim"] = 16
    stages = [
        (
            ByoBlockCfg("bottle", d=1, c=channels, s=2, gs=1, br=2.0),
            ByoBlockCfg(block, d=1, c=channels, s=1, br=0.5, gs=1, block_kwargs=options),
        )
        for channels in (16, 24)
    ]
    return ByoModelCfg(tuple(stages), stem_chs=8, stem_pool="", downsample="", act_layer="silu")


TIMM = [
    timm_family("ViT", "vit_tiny_patch16_224", kind="class token"),
    timm_family("ViT, mean pooled", "vit_tiny_patch16_224", {**PLAIN, "global_pool": "avg"}),
    timm_family("ViT, parallel branches", "vit_small_patch16_18x2_224", kind="parallel branches"),
    timm_family("ViT-22B style", "vit_base_patch16_xp_224", kind="parallel attention and MLP"),
    timm_family("FlexiViT", "flexivit_small"),
    timm_family("ViT of CLIP", "vit_base_patch32_clip_224"),
    timm_family("SigLIP", "vit_base_patch16_siglip_224", kind="attention pooling"),
    timm_family("DINOv2", "vit_small_patch14_dinov2"),
    timm_family("DINOv2, registers", "vit_small_patch14_reg4_dinov2"),
    timm_family("DINOv3", "vit_small_patch16_dinov3", needs="vit_small_patch16_dinov3"),
    timm_family("DeiT", "deit_tiny_patch16_224"),
    timm_family("DeiT, distilled", "deit_tiny_distilled_patch16_224", kind="two class tokens"),
    timm_family("DeiT-3", "deit3_small_patch16_224"),
    timm_family("BEiT", "beit_base_patch16_224"),
    timm_family("BEiT v2", "beitv2_base_patch16_224"),
    timm_family("EVA", "eva_giant_patch14_224"),
    timm_family("EVA-02", "eva02_tiny_patch14_224", not_conserved=GATED, kind="gated units"),
    timm_family("Swin", "swin_tiny_patch4_window7_224", WINDOWED, kind="shifted windows"),
    timm_family("SwinV2", "swinv2_tiny_window8_256", WINDOWED, attentions=OWN),
    timm_family("MaxViT", "maxvit_pico_rw_256", SHORT, not_conserved=GATES),
    timm_family("CoAtNet", "coatnet_pico_rw_224", MIXED, not_conserved=GATES),
    timm_family("CaiT", "cait_xxs24_224", attentions=OWN, kind="talking heads, class attention"),
    timm_family(
        "XCiT",
        "xcit_nano_12_p16_224",
        {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2},
        attentions=OWN,
        kind="attention among channels",
    ),
    timm_made(
        "PVT v2",
        PyramidVisionTransformerV2,
        64,
        BOTH,
        {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2)},
    ),
    timm_family(
        "Twins-SVT",
        "twins_svt_small",
        {
            "img_size": 64,
            "depths": (2, 2),
            "embed_dims": (8, 16),
            "num_heads": (1, 2),
            "sr_ratios": (2, 1),
            "wss": (4, 4),
            "mlp_ratios": (2, 2),
        },
    ),
    timm_made(
        "PiT",
        PoolingVisionTransformer,
        32,
        BOTH,
        {
            "img_size": 32,
            "patch_size": 8,
            "stride": 4,
            "stem_type": "overlap",
            "base_dims": (8, 8),
            "depth": (1, 1),
            "heads": (2, 2),
            "mlp_ratio": 2,
        },
    ),
    timm_family(
        "LeViT",
        "levit_128s",
        {"img_size": 64, "embed_dim": (16, 24), "num_heads": (2, 3), "depth": (1, 1), "key_dim": 8},
        attentions=OWN,
    ),
    timm_made(
        "MViTv2",
        MultiScaleVit,
        32,
        OWN,
        {"cfg": MultiScaleVitCfg(depths=(1, 1), embed_dim=8, num_heads=1), "img_size": 32},
        kind="pooled queries",
    ),
    timm_family(
        "Hiera", "hiera_tiny_224", {"img_size": 32, "stages": (1, 1, 1, 1), "embed_dim": 8}
    ),
    timm_made(
        "CrossViT",
        CrossVit,
        48,
        BOTH,
        {
            "img_size": 48,
            "img_scale": (1.0, 32 / 48),
            "patch_size": (12, 16),
            "embed_dim": (16, 24),
            "depth": ((1, 2, 0), (1, 2, 0)),
            "num_heads": (2, 2),
            "mlp_ratio": (2.0, 2.0, 1.0),
        },
    ),
    timm_family(
        "ConViT",
        "convit_tiny",
        {**PLAIN, "depth": 3, "num_heads": 4, "local_up_to_layer": 2},
        attentions=OWN,
    ),
    timm_family(
        "CoaT",
        "coat_tiny",
        {
            "img_size": 32,
            "embed_dims": (16, 16, 16, 16),
            "serial_depths": (1, 1, 1, 1),
            "parallel_depth": 1,
            "num_heads": 8,
        },
        attentions=OWN,
        not_conserved="linear attention multiplies several signals",
    ),
    timm_family(
        "TNT",
        "tnt_s_legacy_patch16_224",
        {
            "img_size": 32,
            "embed_dim": 16,
            "inner_dim": 8,
            "depth": 2,
            "num_heads_inner": 2,
            "num_heads_outer": 2,
        },
        needs="tnt_s_legacy_patch16_224",
        kind="tokens within tokens",
    ),
    timm_made(
        "VOLO",
        VOLO,
        64,
        BOTH,
        {
            "layers": (1, 1),
            "img_size": 64,
            "embed_dims": (16, 16),
            "num_heads": (2, 2),
            "downsamples": (True, False),
            "outlook_attention": (True, False),
            "mlp_ratio": 2,
            "stem_hidden_dim": 8,
            "use_mix_token": False,
        },
        kind="outlook attention",
    ),
    timm_made(
        "NesT",
        Nest,
        32,
        BOTH,
        {
            "img_size": 32,
            "embed_dims": (8, 8),
            "num_heads": (2, 2),
            "depths": (1, 1),
            "num_levels": 2,
        },
    ),
    timm_family(
        "Visformer",
        "visformer_tiny",
        {"img_size": 64, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2},
    ),
    timm_made("MobileViT", ByobNet, 64, BOTH, {"cfg": _mobile("mobilevit")}),
    timm_made(
        "MobileViTv2",
        ByobNet,
        64,
        BOTH,
        {"cfg": _mobile("mobilevit2")},
        not_conserved=GATED,
        kind="pooling by softmax weights",
    ),
    timm_family(
        "DaViT",
        "davit_tiny",
        {"embed_dims": (8, 16), "depths": (1, 1), "num_heads": (2, 2), "window_size": 4},
        size=32,
        kind="attention among tokens and among channels",
    ),
    timm_made(
        "GC ViT",
        GlobalContextVit,
        64,
        OWN,
        {
            "img_size": 64,
            "window_size": (4, 4, 2, 2),
            "embed_dim": 8,
            "depths": (2, 2, 2, 2),
            "num_heads": (1, 1, 1, 1),
        },
        not_conserved=GATES,
    ),
    timm_family(
        "EdgeNeXt",
        "edgenext_xx_small",
        {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 2)},
        size=64,
        attentions=OWN,
    ),
    timm_family(
        "EfficientFormer",
        "efficientformer_l1",
        {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 2)},
        size=224,
        attentions=OWN,
    ),
]
