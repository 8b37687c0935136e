"""Further families of Transformers that see while they read or write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.model_matrix.family import (
    Case,
    Family,
    drawn,
    padding,
    tokens,
    with_random_weights,
)
from benchmarks.model_matrix.transformers_senses import (
    CHOICES,
    SWIN,
    TEXT_SIZES,
    TWO_SCORES,
    VISION,
    diagonal,
    images,
    joint,
    made_of,
)
from benchmarks.model_matrix.transformers_text import BERT, GATED, HEADS, RECENT, SIZES, WRITTEN

_IMAGE = 31  # the id of the places that an image's features are written to
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
_ENDS = {"bos_token_id": 1, "eos_token_id": 29, "pad_token_id": 0}
_TEXT = {**TEXT_SIZES, **_ENDS}


def _with_images(features: int) -> Tensor:
    """Token ids with places for an image's features among them."""
    ids = tokens(6)
    return torch.cat([ids[:, :2], torch.full((2, features), _IMAGE), ids[:, 2:]], 1)


def _steps(length: int) -> tuple[Any, ...]:
    return [(length - 1, 7), (length - 3, 12)], [(length - 1, 3), (length - 3, 20)]


def _told(
    model: str,
    features: int,
    options: Mapping[str, Any],
    pixels: Callable[[], Tensor],
    attention: str,
) -> Case:
    """A language model with an image's features in the place of some embeddings."""
    config = model.removesuffix("ForConditionalGeneration") + "Config"
    ids = _with_images(features)
    named = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    if "mm_tokens_per_image" in options:
        named["token_type_ids"] = (ids == _IMAGE).long()
    made = made_of(model, config, options, attention)
    return Case(made, {"input_ids": ids, "pixel_values": pixels()}, _steps(ids.shape[1]), named)


class PatchesOfEach(nn.Module):
    """A model that takes the patches of all samples in one sequence, called with each one's own."""

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
    return Case(PatchesOfEach(model).eval(), inputs, _steps(ids.shape[1]), named)


def _siglip2(attention: str) -> Case:
    options = {
        "text_config": {**_TEXT, "max_position_embeddings": 7},
        "vision_config": {**SIZES, "num_hidden_layers": 2, "patch_size": 4, "num_patches": 16},
    }
    named = {
        "pixel_attention_mask": torch.tensor([[1] * 8, [1] * 6 + [0] * 2]),
        "spatial_shapes": torch.tensor([[2, 4], [3, 2]]),
    }
    inputs = {"input_ids": tokens(), "pixel_values": drawn(2, 8, 48, seed=1)}
    model = made_of("Siglip2Model", "Siglip2Config", options, attention)
    return Case(model, inputs, (None,), named, diagonal)


def _flava(attention: str) -> Case:
    options = {
        "image_config": VISION,
        "text_config": _TEXT,
        "multimodal_config": {**SIZES, "num_hidden_layers": 1},
        "projection_dim": 8,
        "hidden_size": 16,
    }
    model = made_of("FlavaModel", "FlavaConfig", options, attention)
    inputs = {"input_ids": tokens(), "pixel_values": images()}
    named = {"attention_mask": padding()}
    return Case(model, inputs, CHOICES, named, lambda o: o.multimodal_embeddings.mean(1))


def _bridge_tower(attention: str) -> Case:
    # Its image tower has one head for 64 features.
    options = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "text_config": {**_TEXT, "hidden_size": 64, "num_hidden_layers": 3},
        "vision_config": {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "image_size": 16,
            "patch_size": 4,
        },
        "contrastive_hidden_size": 8,
    }
    model = made_of("BridgeTowerForImageAndTextRetrieval", "BridgeTowerConfig", options, attention)
    inputs = {"input_ids": tokens(), "pixel_values": images()}
    return Case(model, inputs, ([1, 0], [0, 1]), {"attention_mask": padding()})


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
            **_TEXT,
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
    return Case(model, inputs, _steps(10), {"attention_mask": torch.ones_like(ids)})


def _git(attention: str) -> Case:
    options = {**_TEXT, "vision_config": VISION}
    inputs = {"input_ids": tokens(), "pixel_values": images()}
    model = made_of("GitForCausalLM", "GitConfig", options, attention)
    return Case(model, inputs, _steps(23), {"attention_mask": padding()})


def _layout(attention: str) -> Case:
    options = {
        **BERT,
        "max_2d_position_embeddings": 32,
        "coordinate_size": 3,
        "shape_size": 2,
        "input_size": 16,
        "patch_size": 4,
        "rel_pos_bins": 8,
        "max_rel_pos": 16,
        "rel_2d_pos_bins": 8,
        "max_rel_2d_pos": 16,
    }
    model = made_of("LayoutLMv3ForSequenceClassification", "LayoutLMv3Config", options, attention)
    boxes = torch.tensor([1, 2, 6, 8]).expand(2, 7, 4) + torch.arange(7)[:, None]
    inputs = {"input_ids": tokens(), "pixel_values": images()}
    return Case(model, inputs, CHOICES, {"attention_mask": padding(), "bbox": boxes})


def _read_off(encoder: str, sizes: Mapping[str, Any], attention: str) -> Case:
    """An image encoder and a text decoder."""
    decoder = transformers.TrOCRConfig(
        vocab_size=30,
        d_model=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=12,
        cross_attention_hidden_size=16,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        getattr(transformers, encoder)(**sizes), decoder, attn_implementation=attention
    )
    model = with_random_weights(transformers.VisionEncoderDecoderModel(config))
    inputs = {
        "pixel_values": images(sizes["image_size"]),
        "decoder_input_ids": tokens(4, seed=6),
    }
    return Case(model, inputs, WRITTEN, {"use_cache": False})


def _one(name: str, build: Callable[[str], Case], *how: str, **about: Any) -> Family:
    return joint(name, build, how or ("sdpa", "eager"), **{"needs": RECENT, **about})


def _teller(
    name: str,
    model: str,
    features: int,
    options: Mapping[str, Any],
    pixels: Callable[[], Tensor] = images,
    **about: Any,
) -> Family:
    build = partial(_told, f"{model}ForConditionalGeneration", features, options, pixels)
    return _one(name, build, not_conserved=GATED, **about)


MULTIMODAL = [
    _one("SigLIP 2", _siglip2, not_conserved=TWO_SCORES),
    _one("FLAVA", _flava, "eager"),
    _one("BridgeTower", _bridge_tower, "eager"),
    _one("BLIP-2", _blip2),
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
    _one(
        "Qwen2.5-VL",
        _qwen,
        not_conserved=GATED,
        kind="patches of all samples in one sequence",
    ),
    _one("GIT", _git, "eager"),
    _one("LayoutLMv3", _layout, "eager"),
    _one("TrOCR", partial(_read_off, "ViTConfig", VISION), "eager"),
    _one("Donut", partial(_read_off, "DonutSwinConfig", SWIN), "eager"),
]
