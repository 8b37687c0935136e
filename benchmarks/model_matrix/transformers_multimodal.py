"""Further families of Transformers that see while they read or write."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import transformers

from benchmarks.model_matrix.family import Case, drawn, padding, tokens, with_random_weights
from benchmarks.model_matrix.transformers_image_tokens import IMAGE_TOKENS, TEXT, steps
from benchmarks.model_matrix.transformers_senses import (
    CHOICES,
    SWIN,
    TWO_SCORES,
    VISION,
    diagonal,
    images,
    made_of,
    recent,
)
from benchmarks.model_matrix.transformers_text import BERT, SIZES, WRITTEN


def _siglip2(attention: str) -> Case:
    options = {
        "text_config": {**TEXT, "max_position_embeddings": 7},
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
        "text_config": TEXT,
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
        "text_config": {**TEXT, "hidden_size": 64, "num_hidden_layers": 3},
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


def _git(attention: str) -> Case:
    options = {**TEXT, "vision_config": VISION}
    inputs = {"input_ids": tokens(), "pixel_values": images()}
    model = made_of("GitForCausalLM", "GitConfig", options, attention)
    return Case(model, inputs, steps(23), {"attention_mask": padding()})


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


MULTIMODAL = [
    recent("SigLIP 2", _siglip2, not_conserved=TWO_SCORES),
    recent("FLAVA", _flava, "eager"),
    recent("BridgeTower", _bridge_tower, "eager"),
    *IMAGE_TOKENS,
    recent("GIT", _git, "eager"),
    recent("LayoutLMv3", _layout, "eager"),
    recent("TrOCR", partial(_read_off, "ViTConfig", VISION), "eager"),
    recent("Donut", partial(_read_off, "DonutSwinConfig", SWIN), "eager"),
]
