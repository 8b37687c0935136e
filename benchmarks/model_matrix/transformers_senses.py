"""Families of Transformers that see or hear, some of them while they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.model_matrix.family import (
    CLASSES,
    Case,
    Family,
    drawn,
    padding,
    tokens,
    with_random_weights,
)
from benchmarks.model_matrix.transformers_text import BERT, RECENT, SIZES, WRITTEN, configured

VISION = {
    **SIZES,
    "num_hidden_layers": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": CLASSES,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "num_labels": CLASSES,
}
TEXT_SIZES = {**SIZES, "vocab_size": 30, "num_hidden_layers": 2, "max_position_embeddings": 16}
WAV2VEC2 = {
    **SIZES,
    "num_hidden_layers": 2,
    "conv_dim": [8, 8],
    "conv_kernel": [4, 4],
    "conv_stride": [2, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "num_labels": CLASSES,
}
CHOICES = ([1, 4], [3, 0], [2, 2])


def images(size: int = 16) -> Tensor:
    """Images of two samples."""
    return drawn(2, 3, size, size, seed=1)


def made_of(model: str, config: str, options: Mapping[str, Any], attention: str) -> Any:
    """A model of Transformers with random weights."""
    return with_random_weights(getattr(transformers, model)(configured(config, options, attention)))


def _seen(model: str, options: Mapping[str, Any], size: int, attention: str) -> Case:
    made = made_of(f"{model}ForImageClassification", f"{model}Config", options, attention)
    return Case(made, {"pixel_values": images(size)}, CHOICES)


def viewer(
    name: str,
    model: str,
    options: Mapping[str, Any] = VISION,
    attentions: tuple[str, ...] = ("sdpa", "eager"),
    size: int = 16,
    **about: Any,
) -> Family:
    """A family of image classifiers."""
    build = partial(_seen, model, options, size)
    about = {"needs": f"{model}ForImageClassification", **about}
    return Family("Transformers", name, build, attentions, **about)


def _videomae(attention: str) -> Case:
    options = {**VISION, "num_frames": 4, "tubelet_size": 2}
    model = made_of("VideoMAEForVideoClassification", "VideoMAEConfig", options, attention)
    return Case(model, {"pixel_values": drawn(2, 4, 3, 16, 16, seed=1)}, CHOICES)


def _ast(attention: str) -> Case:
    options = {
        **SIZES,
        "num_hidden_layers": 2,
        "patch_size": 4,
        "frequency_stride": 4,
        "time_stride": 4,
        "max_length": 16,
        "num_mel_bins": 8,
        "num_labels": CLASSES,
    }
    model = made_of("ASTForAudioClassification", "ASTConfig", options, attention)
    return Case(model, {"input_values": drawn(2, 16, 8, seed=7)}, CHOICES)


def _wav2vec2(attention: str) -> Case:
    model = made_of("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", WAV2VEC2, attention)
    return Case(model, {"input_values": drawn(2, 80, seed=7)}, CHOICES)


def _whisper(attention: str) -> Case:
    options = {
        "vocab_size": 30,
        "num_mel_bins": 6,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_source_positions": 8,
        "max_target_positions": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    model = made_of("WhisperForConditionalGeneration", "WhisperConfig", options, attention)
    inputs = {"input_features": drawn(2, 6, 16, seed=7), "decoder_input_ids": tokens(4, seed=6)}
    return Case(model, inputs, WRITTEN, {"use_cache": False})


def diagonal(output: Any) -> Tensor:
    """How similar each image and its own text are."""
    return output.logits_per_image.diagonal()


def _two_towers(model: str, attention: str) -> Case:
    ends = {"bos_token_id": 1, "eos_token_id": 29}
    options = {
        "text_config": {**TEXT_SIZES, **ends, "max_position_embeddings": 7},
        "vision_config": VISION,
        **({"projection_dim": 8} if model == "CLIP" else {}),
    }
    made = made_of(f"{model}Model", f"{model}Config", options, attention)
    ids = tokens(vocabulary=29)
    ids[:, -1] = 29
    inputs = {"input_ids": ids, "pixel_values": images()}
    return Case(made, inputs, (None,), score=diagonal)


def _vilt(attention: str) -> Case:
    options = {**BERT, "image_size": 16, "patch_size": 4}
    model = made_of("ViltForQuestionAnswering", "ViltConfig", options, attention)
    named = {"attention_mask": padding(), "pixel_mask": torch.ones(2, 16, 16).long()}
    return Case(model, {"input_ids": tokens(), "pixel_values": images()}, CHOICES, named)


def _visual_bert(attention: str) -> Case:
    options = {**BERT, "visual_embedding_dim": 10}
    model = made_of("VisualBertForQuestionAnswering", "VisualBertConfig", options, attention)
    inputs = {"input_ids": tokens(), "visual_embeds": drawn(2, 4, 10, seed=4)}
    return Case(model, inputs, CHOICES, {"attention_mask": padding()})


def _lxmert(attention: str) -> Case:
    options = {
        **SIZES,
        "vocab_size": 30,
        "num_qa_labels": CLASSES,
        "visual_feat_dim": 10,
        "max_position_embeddings": 16,
        "l_layers": 2,
        "r_layers": 2,
        "x_layers": 2,
    }
    model = made_of("LxmertForQuestionAnswering", "LxmertConfig", options, attention)
    inputs = {
        "input_ids": tokens(),
        "visual_feats": drawn(2, 4, 10, seed=4),
        "visual_pos": drawn(2, 4, 4, seed=5).sigmoid(),
    }
    return Case(model, inputs, CHOICES, {"attention_mask": padding()})


def _blip(attention: str) -> Case:
    options = {
        "text_config": {**BERT, "encoder_hidden_size": 16, "bos_token_id": 1, "sep_token_id": 2},
        "vision_config": VISION,
        "projection_dim": 8,
        "image_text_hidden_size": 8,
    }
    model = made_of("BlipForImageTextRetrieval", "BlipConfig", options, attention)
    inputs = {"input_ids": tokens(), "pixel_values": images()}
    return Case(model, inputs, ([1, 0], [0, 1]), {"attention_mask": padding()})


def _detr(attention: str) -> Case:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        num_queries=4,
        num_labels=CLASSES,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        attn_implementation={"": attention, "backbone_config": "eager"},
    )
    model = with_random_weights(transformers.DetrForObjectDetection(config))
    inputs = {"pixel_values": drawn(2, 3, 16, 24, seed=1)}
    return Case(model, inputs, ([(2, 1), (0, 4)], [(1, 2), (3, 0)]))


def joint(
    name: str,
    build: Callable[[str], Case],
    attentions: tuple[str, ...] = ("sdpa", "eager"),
    **about: Any,
) -> Family:
    """A family with a call of its own."""
    return Family("Transformers", name, build, attentions, **about)


def recent(name: str, build: Callable[[str], Case], *how: str, **about: Any) -> Family:
    """A family of recent versions of Transformers."""
    return joint(name, build, how or ("sdpa", "eager"), **{"needs": RECENT, **about})


TWO_SCORES = "the score is a product of two towers' outputs"

SENSES = [
    viewer("ViT", "ViT"),
    viewer("DeiT", "DeiT"),
    viewer("BEiT", "Beit"),
    viewer("DINOv2", "Dinov2"),
    viewer("Swin", "Swin", SWIN, ("eager",), 32),
    viewer("SwinV2", "Swinv2", SWIN, ("eager",), 32),
    viewer(
        "SegFormer",
        "Segformer",
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "num_labels": CLASSES,
        },
        ("eager",),
        64,
    ),
    joint(
        "VideoMAE",
        _videomae,
        not_conserved="positions that are no parameters are added",
        kind="video",
    ),
    joint("AST", _ast),
    joint("wav2vec 2.0", _wav2vec2, kind="sound"),
    joint("Whisper", _whisper),
    joint(
        "CLIP",
        partial(_two_towers, "CLIP"),
        needs=RECENT,
        not_conserved=TWO_SCORES,
        kind="two towers",
    ),
    joint("SigLIP", partial(_two_towers, "Siglip"), not_conserved=TWO_SCORES),
    joint("ViLT", _vilt, ("eager",), kind="one stream of two"),
    joint("VisualBERT", _visual_bert, ("eager",)),
    joint("LXMERT", _lxmert, ("eager",), kind="two streams"),
    joint("BLIP", _blip, ("eager",)),
    joint("DETR", _detr, kind="learned queries"),
]
