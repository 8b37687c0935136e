"""Language models of Transformers in which the features of an image replace some embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_matrix.family import Case, Family, drawn, tokens
from benchmarks.model_matrix.transformers_senses import TEXT_SIZES, VISION, images, made_of, recent
from benchmarks.model_matrix.transformers_text import GATED, HEADS, SIZES

_IMAGE = 31  # the token that the features of an image replace
_TOWER = {key: size for key, size in VISION.items() if key != "num_labels"}
_CLIP = {**_TOWER, "model_type": "clip_vision_model"}
_SIGLIP = {**_TOWER, "model_type": "siglip_vision_model"}
_DECODER = {**HEADS, "vocab_size": 40, "max_position_embeddings": 64}
_GEMMA3 = {
    **_DECODER,
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": 4,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}
_QWEN = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "out_hidden_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
    "window_size": 8,
    "fullatt_block_indexes": [1],
}
_QWEN_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 10000.0}
TEXT = {**TEXT_SIZES, "bos_token_id": 1, "eos_token_id": 29, "pad_token_id": 0}


def _with_images(features: int) -> Tensor:
    """Token ids, with ids of the image among them that its features replace."""
    ids = tokens(6)
    return torch.cat([ids[:, :2], torch.full((2, features), _IMAGE), ids[:, 2:]], 1)


def steps(length: int) -> tuple[Any, ...]:
    return [(length - 1, 7), (length - 3, 12)], [(length - 1, 3), (length - 3, 20)]


def _told(
    model: str,
    features: int,
    options: Mapping[str, Any],
    pixels: Callable[[], Tensor],
    attention: str,
) -> Case:
    """A language model in which the features of an image replace some embeddings."""
    config = model.removesuffix("ForConditionalGeneration") + "Config"
    ids = _with_images(features)
    named = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    if "mm_tokens_per_image" in options:
        named["token_type_ids"] = (ids == _IMAGE).long()
    made = made_of(model, config, options, attention)
    return Case(made, {"input_ids": ids, "pixel_values": pixels()}, steps(ids.shape[1]), named)


class PatchesOfEach(nn.Module):
    """A model that takes the patches of all samples in one sequence, called with those of each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, pixel_values: Tensor, **named: Any) -> Any:
        """``pixel_values``: (samples, patches, values)."""
        return self.model(input_ids=input_ids, pixel_values=pixel_values.flatten(0, 1), **named)


def _qwen(attention: str) -> Case:
    options = {
        "vision_config": _QWEN,
        "text_config": {**_DECODER, "rope_scaling": _QWEN_ROPE, "rope_parameters": _QWEN_ROPE},
        "image_token_id": _IMAGE,
        "video_token_id": 32,
        "vision_start_token_id": 33,
        "vision_end_token_id": 34,
    }
    model = made_of("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", options, attention)
    ids = _with_images(4)
    ids[:, 1] = 33
    named = {
        "attention_mask": torch.ones_like(ids),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "mm_token_type_ids": (ids == _IMAGE).int(),
        "use_cache": False,
    }
    inputs = {"input_ids": ids, "pixel_values": drawn(2, 16, 48, seed=1)}
    return Case(PatchesOfEach(model).eval(), inputs, steps(ids.shape[1]), named)


def _blip2(attention: str) -> Case:
    options = {
        "vision_config": VISION,
        "qformer_config": {
            **SIZES,
            "num_hidden_layers": 2,
            "encoder_hidden_size": 16,
            "vocab_size": 30,
            "cross_attention_frequency": 1,
        },
        "text_config": {
            **TEXT,
            "model_type": "opt",
            "vocab_size": 40,
            "ffn_dim": 32,
            "word_embed_proj_dim": 16,
        },
        "num_query_tokens": 4,
        "image_token_index": _IMAGE,
    }
    model = made_of("Blip2ForConditionalGeneration", "Blip2Config", options, attention)
    ids = _with_images(4)
    inputs = {"input_ids": ids, "pixel_values": images()}
    return Case(model, inputs, steps(10), {"attention_mask": torch.ones_like(ids)})


def _teller(
    name: str,
    model: str,
    features: int,
    options: Mapping[str, Any],
    pixels: Callable[[], Tensor] = images,
    **about: Any,
) -> Family:
    build = partial(_told, f"{model}ForConditionalGeneration", features, options, pixels)
    return recent(name, build, not_conserved=GATED, **about)


IMAGE_TOKENS = [
    recent("BLIP-2", _blip2),
    _teller(
        "LLaVA",
        "Llava",
        16,
        {
            "vision_config": _CLIP,
            "text_config": {**_DECODER, "model_type": "llama"},
            "image_token_index": _IMAGE,
            "vision_feature_layer": -1,
        },
        kind="image features among words",
    ),
    _teller(
        "Gemma 3, images",
        "Gemma3",
        4,
        {
            "vision_config": _SIGLIP,
            "text_config": _GEMMA3,
            "image_token_index": _IMAGE,
            "mm_tokens_per_image": 4,
        },
    ),
    _teller(
        "Idefics3",
        "Idefics3",
        4,
        {
            "vision_config": _TOWER,
            "text_config": {**_DECODER, "model_type": "llama"},
            "image_token_id": _IMAGE,
            "scale_factor": 2,
        },
        lambda: drawn(2, 1, 3, 16, 16, seed=3),
    ),
    _teller(
        "InternVL",
        "InternVL",
        4,
        {
            "vision_config": {**_TOWER, "image_size": [16, 16], "patch_size": [4, 4]},
            "text_config": {**_DECODER, "model_type": "qwen2"},
            "image_token_id": _IMAGE,
            "vision_feature_layer": -1,
        },
    ),
    recent(
        "Qwen2.5-VL",
        _qwen,
        not_conserved=GATED,
        kind="patches of all samples in one sequence",
    ),
]
