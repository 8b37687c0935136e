"""Further families of Transformers that hear, and such that follow a course of time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.model_matrix.family import CLASSES, Case, Family, drawn, padding, tokens
from benchmarks.model_matrix.transformers_senses import (
    CHOICES,
    TEXT_SIZES,
    TWO_SCORES,
    WAV2VEC2,
    joint,
    made_of,
)
from benchmarks.model_matrix.transformers_text import GATED, RECENT, WRITTEN

_SPEECH2TEXT = {
    "vocab_size": 30,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "max_source_positions": 16,
    "max_target_positions": 12,
    "input_feat_per_channel": 6,
    "conv_channels": 16,
}
_SPEECHT5 = {
    "hidden_size": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "conv_dim": [8, 8],
    "conv_kernel": [4, 4],
    "conv_stride": [2, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 30,
    "encoder_max_relative_position": 8,
    "max_length": 20,
}
_MOONSHINE = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 32,
    "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 2,
    "decoder_num_attention_heads": 2,
    "decoder_start_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_CLAP = {
    "text_config": {**TEXT_SIZES, "pad_token_id": 1},
    "audio_config": {
        "window_size": 4,
        "num_mel_bins": 8,
        "spec_size": 32,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "enable_fusion": False,
        "num_hidden_layers": 2,
    },
    "projection_dim": 8,
}
_PATCHTST = {
    "num_input_channels": 2,
    "context_length": 16,
    "patch_length": 4,
    "patch_stride": 4,
    "d_model": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "num_targets": CLASSES,
    "use_cls_token": True,
}
_DECISION = {
    "state_dim": 5,
    "act_dim": 3,
    "hidden_size": 16,
    "n_layer": 2,
    "n_head": 2,
    "max_ep_len": 20,
    "n_positions": 32,
}


def _heard(model: str, options: Mapping[str, Any], attention: str) -> Case:
    made = made_of(f"{model}ForSequenceClassification", f"{model}Config", options, attention)
    if "feature_projection_input_dim" in options:
        return Case(made, {"input_features": drawn(2, 12, 10, seed=7)}, CHOICES)
    return Case(made, {"input_values": drawn(2, 80, seed=7)}, CHOICES)


def _written_down(
    model: str, config: str, options: Mapping[str, Any], name: str, size: tuple[int, ...], how: str
) -> Case:
    inputs = {name: drawn(2, *size, seed=7), "decoder_input_ids": tokens(4, seed=6)}
    return Case(made_of(model, config, options, how), inputs, WRITTEN, {"use_cache": False})


def _sound_and_text(attention: str) -> Case:
    inputs = {"input_ids": tokens(), "input_features": drawn(2, 1, 128, 8, seed=7)}
    model = made_of("ClapModel", "ClapConfig", _CLAP, attention)
    named = {"attention_mask": padding()}
    return Case(model, inputs, (None,), named, lambda output: output.logits_per_audio.diagonal())


def _patch_tst(attention: str) -> Case:
    model = made_of("PatchTSTForClassification", "PatchTSTConfig", _PATCHTST, attention)
    inputs = {"past_values": drawn(2, 16, 2, seed=1)}
    return Case(model, inputs, CHOICES, score=lambda output: output.prediction_logits)


def _decision(attention: str) -> Case:
    model = made_of("DecisionTransformerModel", "DecisionTransformerConfig", _DECISION, attention)
    inputs = {
        "states": drawn(2, 4, 5, seed=1),
        "actions": drawn(2, 4, 3, seed=2),
        "returns_to_go": drawn(2, 4, 1, seed=3),
    }
    named = {
        "rewards": drawn(2, 4, 1, seed=4),
        "timesteps": torch.arange(4).expand(2, 4),
        "attention_mask": torch.ones(2, 4),
    }
    targets = ([(3, 2), (2, 0)], [(3, 1), (2, 2)])
    return Case(model, inputs, targets, named, lambda output: output.action_preds)


def _listener(
    name: str, model: str, options: Mapping[str, Any] = WAV2VEC2, *how: str, **about: Any
) -> Family:
    build = partial(_heard, model, options)
    return joint(name, build, how or ("sdpa", "eager"), **{"needs": RECENT, **about})


HEARING = [
    _listener("HuBERT", "Hubert"),
    _listener("WavLM", "WavLM", WAV2VEC2, "eager"),
    _listener(
        "wav2vec 2.0 BERT",
        "Wav2Vec2Bert",
        {
            **WAV2VEC2,
            "feature_projection_input_dim": 10,
            "position_embeddings_type": "relative_key",
            "conv_depthwise_kernel_size": 3,
        },
        "eager",
        not_conserved=GATED,
    ),
    joint(
        "Speech2Text",
        partial(
            _written_down,
            "Speech2TextForConditionalGeneration",
            "Speech2TextConfig",
            _SPEECH2TEXT,
            "input_features",
            (16, 6),
        ),
        ("eager",),
        needs=RECENT,
        not_conserved=GATED,
    ),
    joint(
        "SpeechT5",
        partial(
            _written_down,
            "SpeechT5ForSpeechToText",
            "SpeechT5Config",
            _SPEECHT5,
            "input_values",
            (80,),
        ),
        ("eager",),
        needs=RECENT,
        not_conserved="positions that are no parameters are added",
    ),
    joint(
        "Moonshine",
        partial(
            _written_down,
            "MoonshineForConditionalGeneration",
            "MoonshineConfig",
            _MOONSHINE,
            "input_values",
            (1700,),
        ),
        needs=RECENT,
        not_conserved=GATED,
    ),
    joint("CLAP", _sound_and_text, ("eager",), needs=RECENT, not_conserved=TWO_SCORES),
    joint("PatchTST", _patch_tst, needs=RECENT),
    joint(
        "Decision Transformer",
        _decision,
        needs=RECENT,
        not_conserved="embeddings of time are added",
    ),
]
