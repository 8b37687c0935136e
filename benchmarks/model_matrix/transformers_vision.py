"""Further families of Transformers that see: video, detection, depth, learned latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import transformers
from torch import Tensor

from benchmarks.model_matrix.family import CLASSES, Case, Family, drawn, tokens, with_random_weights
from benchmarks.model_matrix.transformers_senses import (
    CHOICES,
    TEXT_SIZES,
    TWO_SCORES,
    VISION,
    images,
    joint,
    made_of,
    viewer,
)
from benchmarks.model_matrix.transformers_text import GATED, RECENT, SIZES

_TWO_QUERIES = ([(2, 1), (0, 4)], [(1, 2), (2, 0)])
_HIERA = {
    "image_size": [32, 32],
    "embed_dim": 8,
    "num_heads": [1, 2],
    "depths": [1, 1],
    "num_query_pool": 1,
    "query_stride": [2, 2],
    "masked_unit_size": [4, 4],
    "masked_unit_attention": [True, False],
    "num_labels": CLASSES,
}
_DPT = {
    **VISION,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "reassemble_factors": [4, 2, 1, 0.5],
    "is_hybrid": False,
    "use_auxiliary_head": False,
}
_SAM = {
    **SIZES,
    "mlp_dim": 32,
    "num_hidden_layers": 2,
    "image_size": 24,
    "patch_size": 4,
    "output_channels": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
}
_VJEPA2 = {
    "patch_size": 4,
    "crop_size": 16,
    "frames_per_clip": 4,
    "tubelet_size": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "mlp_ratio": 2,
    "pred_hidden_size": 16,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 2,
    "num_pooler_layers": 1,
    "num_labels": CLASSES,
}
_PERCEIVER = {
    "num_latents": 4,
    "d_latents": 16,
    "d_model": 16,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
    "image_size": 8,
    "num_labels": CLASSES,
}
_DETECTOR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "d_model": 16,
    "num_queries": 4,
    "num_labels": CLASSES,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
_RT_DETR = {
    **_DETECTOR,
    "encoder_layers": 1,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 8, 16],
    "decoder_in_channels": [16, 16, 16],
    "num_feature_levels": 3,
    "decoder_n_points": 2,
    "num_denoising": 0,
}


def _case(
    model: str,
    config: str,
    options: Mapping[str, Any],
    inputs: Callable[[], dict[str, Tensor]],
    targets: tuple[Any, ...],
    score: Callable[[Any], Tensor] | None,
    attention: str,
) -> Case:
    return Case(made_of(model, config, options, attention), inputs(), targets, score=score)


def _sight(
    name: str,
    model: str,
    config: str,
    options: Mapping[str, Any],
    *attentions: str,
    inputs: Callable[[], dict[str, Tensor]] = lambda: {"pixel_values": images()},
    targets: tuple[Any, ...] = CHOICES,
    score: Callable[[Any], Tensor] | None = None,
    **about: Any,
) -> Family:
    build = partial(_case, model, config, options, inputs, targets, score)
    return joint(name, build, attentions or ("sdpa", "eager"), **{"needs": RECENT, **about})


def _video(name: str = "pixel_values", frames: int = 4) -> dict[str, Tensor]:
    return {name: drawn(2, frames, 3, 16, 16, seed=1)}


def _mean_of_channels(output: Any) -> Tensor:
    return output.last_hidden_state.flatten(2).mean(2)


def _conditional_detr(attention: str) -> Case:
    config = transformers.ConditionalDetrConfig(
        **_DETECTOR,
        backbone_config=_backbone(transformers.ResNetConfig, ["stage4"]),
        attn_implementation={"": attention, "backbone_config": "eager"},
    )
    model = with_random_weights(transformers.ConditionalDetrForObjectDetection(config))
    return Case(model, {"pixel_values": drawn(2, 3, 64, 96, seed=1)}, _TWO_QUERIES)


def _rt_detr(attention: str) -> Case:
    config = transformers.RTDetrConfig(
        **_RT_DETR,
        backbone_config=_backbone(transformers.RTDetrResNetConfig, ["stage2", "stage3", "stage4"]),
        attn_implementation={"": attention, "backbone_config": "eager"},
    )
    model = with_random_weights(transformers.RTDetrForObjectDetection(config))
    return Case(model, {"pixel_values": drawn(2, 3, 64, 96, seed=1)}, _TWO_QUERIES)


def _backbone(config: Callable[..., Any], stages: list[str]) -> Any:
    return config(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=stages,
    )


def _owl_vit(attention: str) -> Case:
    text = {**TEXT_SIZES, "max_position_embeddings": 7, "pad_token_id": 0}
    options = {
        "text_config": {**text, "bos_token_id": 1, "eos_token_id": 29},
        "vision_config": VISION,
        "projection_dim": 16,
    }
    model = made_of("OwlViTForObjectDetection", "OwlViTConfig", options, attention)
    ids = tokens(vocabulary=29)
    ids[:, -1] = 29
    inputs = {"input_ids": ids, "pixel_values": images()}
    named = {"attention_mask": ids.clamp(max=1)}
    return Case(model, inputs, ([(2, 0), (5, 0)], [(7, 0), (1, 0)]), named)


def _timm_wrapper(_: str) -> Case:
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"img_size": 32, "depth": 2},
        num_labels=CLASSES,
    )
    model = with_random_weights(transformers.TimmWrapperForImageClassification(config))
    return Case(model, {"pixel_values": images(32)}, CHOICES)


VISION_FAMILIES = [
    viewer("DINOv2, registers", "Dinov2WithRegisters", {**VISION, "num_register_tokens": 2}),
    viewer("Hiera", "Hiera", _HIERA, ("eager",), 32, needs=RECENT),
    _sight(
        "AIMv2",
        "Aimv2VisionModel",
        "Aimv2VisionConfig",
        VISION,
        score=lambda output: output.pooler_output,
        not_conserved=GATED,
    ),
    joint("timm wrapper", _timm_wrapper, ("eager",), needs=RECENT),
    _sight(
        "TimeSformer",
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        {**VISION, "num_frames": 3},
        "eager",
        inputs=partial(_video, frames=3),
    ),
    _sight(
        "ViViT",
        "VivitForVideoClassification",
        "VivitConfig",
        {**VISION, "num_frames": 4, "tubelet_size": [2, 4, 4]},
        inputs=_video,
    ),
    _sight(
        "V-JEPA 2",
        "VJEPA2ForVideoClassification",
        "VJEPA2Config",
        _VJEPA2,
        inputs=partial(_video, "pixel_values_videos"),
    ),
    _sight(
        "Perceiver, images",
        "PerceiverForImageClassificationLearned",
        "PerceiverConfig",
        _PERCEIVER,
        "eager",
        inputs=lambda: {"inputs": images(8)},
    ),
    _sight(
        "SAM, image encoder",
        "SamVisionModel",
        "SamVisionConfig",
        _SAM,
        inputs=lambda: {"pixel_values": images(24)},
        score=_mean_of_channels,
    ),
    _sight(
        "DPT",
        "DPTForSemanticSegmentation",
        "DPTConfig",
        _DPT,
        targets=([(1, 4, 4), (2, 5, 5)], [(3, 4, 4), (1, 5, 5)]),
    ),
    _sight(
        "YOLOS",
        "YolosForObjectDetection",
        "YolosConfig",
        {**VISION, "image_size": [16, 16], "num_detection_tokens": 3},
        targets=_TWO_QUERIES,
    ),
    joint("Conditional DETR", _conditional_detr, needs=RECENT),
    joint("RT-DETR", _rt_detr, needs=RECENT),
    joint(
        "OWL-ViT",
        _owl_vit,
        needs=RECENT,
        not_conserved=TWO_SCORES,
    ),
]
