"""Families of Transformers that read or write text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import transformers

from benchmarks.model_matrix.family import (
    CLASSES,
    Case,
    Family,
    padding,
    tokens,
    with_random_weights,
)

_GATED = "gated units multiply two signals"
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {
    **SIZES,
    "vocab_size": 30,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "num_labels": CLASSES,
}
_DECODER = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = {**_DECODER, "head_dim": 4}
# The grouped kernels, the default, have no double precision.
_LOOP = {"experts_implementation": "eager"}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, **_LOOP}
_SEQ2SEQ = {
    "vocab_size": 30,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_T5 = {
    "vocab_size": 30,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "decoder_start_token_id": 0,
}
# Earlier versions lack this class, and here they make masks in single precision only, take no mask
# or have no fused attention.
RECENT = "GptOssConfig"
# (position, token): the logit of a token as the one behind a position.
STEPS = ([(6, 7), (4, 12)], [(6, 3), (4, 20)], [(6, 9), (4, 5)])
WRITTEN = ([(3, 7), (2, 12)], [(3, 3), (2, 20)])


def configured(name: str, options: Mapping[str, Any], attention: str) -> Any:
    """A configuration of Transformers."""
    return getattr(transformers, name)(**options, attn_implementation=attention)


def _classifier(model: str, options: Mapping[str, Any], attention: str) -> Case:
    config = configured(f"{model}Config", options, attention)
    made = getattr(transformers, f"{model}ForSequenceClassification")(config)
    named = {"attention_mask": padding()}
    return Case(with_random_weights(made), {"input_ids": tokens()}, ([1, 4], [3, 0], [2, 2]), named)


def _continuing(model: str, config: str, options: Mapping[str, Any], attention: str) -> Case:
    made = getattr(transformers, model)(configured(config, options, attention))
    named = {"attention_mask": padding(), "use_cache": False}
    return Case(with_random_weights(made), {"input_ids": tokens()}, STEPS, named)


def _translating(model: str, config: str, options: Mapping[str, Any], attention: str) -> Case:
    made = getattr(transformers, model)(configured(config, options, attention))
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(4, seed=6)}
    named = {"attention_mask": padding(), "use_cache": False}
    return Case(with_random_weights(made), inputs, WRITTEN, named)


def _reader(
    name: str, model: str, options: Mapping[str, Any] = BERT, *attentions: str, **about: Any
) -> Family:
    build = partial(_classifier, model, options)
    about = {"needs": f"{model}Config", **about}
    return Family("Transformers", name, build, attentions or ("sdpa", "eager"), **about)


def _writer(
    name: str,
    model: str,
    config: str | None = None,
    options: Mapping[str, Any] = _HEADS,
    attentions: tuple[str, ...] = ("sdpa", "eager"),
    **about: Any,
) -> Family:
    config = config or model.removesuffix("ForCausalLM") + "Config"
    build = partial(_continuing, model, config, options)
    about = {"needs": model, "not_conserved": _GATED, **about}
    return Family("Transformers", name, build, attentions, **about)


def _pair(
    name: str, model: str, options: Mapping[str, Any], *attentions: str, **about: Any
) -> Family:
    build = partial(_translating, f"{model}ForConditionalGeneration", f"{model}Config", options)
    attentions = attentions or ("sdpa", "eager")
    return Family("Transformers", name, build, attentions, needs=RECENT, **about)


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: option for name, option in options.items() if name not in names}


TEXT = [
    _reader("BERT", "Bert", kind="words"),
    _reader("RoBERTa", "Roberta", {**BERT, "pad_token_id": 1}),
    _reader("XLM-R", "XLMRoberta", {**BERT, "pad_token_id": 1}),
    _reader("ELECTRA", "Electra", {**BERT, "embedding_size": 8}),
    _reader(
        "DistilBERT",
        "DistilBert",
        {
            "vocab_size": 30,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 32,
            "max_position_embeddings": 16,
            "num_labels": CLASSES,
        },
    ),
    _reader("ALBERT", "Albert", {**BERT, "embedding_size": 8}, kind="shared layers"),
    _reader("MPNet", "MPNet", {**BERT, "pad_token_id": 1, "vocab_size": 60}, "eager"),
    _reader(
        "DeBERTa",
        "Deberta",
        {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "eager",
    ),
    _reader(
        "DeBERTa v2",
        "DebertaV2",
        {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "eager",
        kind="disentangled attention",
    ),
    _reader(
        "ModernBERT",
        "ModernBert",
        {
            **BERT,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "local_attention": 4,
            "global_attn_every_n_layers": 2,
        },
        not_conserved=_GATED,
        kind="local attention",
    ),
    _reader(
        "Longformer",
        "Longformer",
        {**BERT, "attention_window": [4, 4], "pad_token_id": 1},
        "eager",
        kind="attention in chunks",
    ),
    _reader(
        "XLNet",
        "XLNet",
        {
            "vocab_size": 30,
            "d_model": 16,
            "n_layer": 2,
            "n_head": 2,
            "d_inner": 32,
            "num_labels": CLASSES,
        },
        "eager",
        kind="attention by einsum",
    ),
    _reader("FNet", "FNet", BERT, "eager", needs=RECENT, kind="Fourier mixing"),
    _writer(
        "GPT-2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 30, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2},
        not_conserved=None,
        needs=RECENT,
        kind="next token",
    ),
    _writer(
        "GPT-NeoX",
        "GPTNeoXForCausalLM",
        options=_without(_DECODER, "num_key_value_heads"),
        not_conserved=None,
        kind="parallel attention and MLP, next token",
    ),
    _writer("Llama", "LlamaForCausalLM", kind="grouped keys"),
    _writer("Mistral", "MistralForCausalLM", options={**_HEADS, "sliding_window": 4}),
    _writer("Qwen2", "Qwen2ForCausalLM", options=_DECODER),
    _writer("Qwen3", "Qwen3ForCausalLM"),
    _writer(
        "Gemma 2",
        "Gemma2ForCausalLM",
        options={**_HEADS, "sliding_window": 4},
        attentions=("eager",),
    ),
    _writer(
        "Gemma 3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_HEADS, "sliding_window": 4, "query_pre_attn_scalar": 4},
    ),
    _writer("Phi-3", "Phi3ForCausalLM", options=_DECODER),
    _writer(
        "GPT-OSS",
        "GptOssForCausalLM",
        options={**_HEADS, **_EXPERTS, "sliding_window": 4},
        attentions=("eager",),
        kind="attention sinks",
    ),
    _writer(
        "Mixtral",
        "MixtralForCausalLM",
        options={**_DECODER, **_EXPERTS},
        kind="mixture of experts",
    ),
    _writer(
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        options={
            **_DECODER,
            **_LOOP,
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 4,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    _writer(
        "DeepSeek-V2",
        "DeepseekV2ForCausalLM",
        options={
            **_DECODER,
            **_LOOP,
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 4,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
        kind="complex rotary embeddings",
    ),
    _pair("T5", "T5", _T5, kind="encoder and decoder"),
    _pair("LongT5", "LongT5", {**_T5, "local_radius": 3}, "eager", kind="attention in blocks"),
    _pair("BART", "Bart", _SEQ2SEQ),
    _pair(
        "LED",
        "LED",
        {
            **_without(_SEQ2SEQ, "max_position_embeddings"),
            "attention_window": [4, 4],
            "max_encoder_position_embeddings": 16,
            "max_decoder_position_embeddings": 16,
        },
        "eager",
    ),
]
