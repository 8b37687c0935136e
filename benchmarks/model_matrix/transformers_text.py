"""How small models of Transformers that read or write text are made and called."""

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

GATED = "gated units multiply two signals"
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {
    **SIZES,
    "vocab_size": 30,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "num_labels": CLASSES,
}
DECODER = {
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
HEADS = {**DECODER, "head_dim": 4}
# The grouped kernels, the default, have no double precision.
LOOP = {"experts_implementation": "eager"}
BY_EXPERTS = ("sdpa", "eager", "sdpa+batched_mm")
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, **LOOP}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **LOOP}
DEEPSEEK = {
    **DECODER,
    **LOOP,
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
}
SEQ2SEQ = {
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
T5 = {
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
    """A configuration of Transformers; behind a plus, what runs the experts."""
    attention, _, experts = attention.partition("+")
    if experts:
        options = {**options, "experts_implementation": experts}
    return getattr(transformers, name)(**options, attn_implementation=attention)


def classifier(model: str, options: Mapping[str, Any], attention: str, *, length: int = 7) -> Case:
    """A call of a classifier of texts."""
    config = configured(f"{model}Config", options, attention)
    made = getattr(transformers, f"{model}ForSequenceClassification")(config)
    named, inputs = {"attention_mask": padding(length)}, {"input_ids": tokens(length)}
    return Case(with_random_weights(made), inputs, ([1, 4], [3, 0], [2, 2]), named)


def _continuing(model: str, config: str, options: Mapping[str, Any], attention: str) -> Case:
    made = getattr(transformers, model)(configured(config, options, attention))
    named = {"attention_mask": padding(), "use_cache": False}
    return Case(with_random_weights(made), {"input_ids": tokens()}, STEPS, named)


def _translating(model: str, config: str, options: Mapping[str, Any], attention: str) -> Case:
    made = getattr(transformers, model)(configured(config, options, attention))
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(4, seed=6)}
    named = {"attention_mask": padding(), "use_cache": False}
    return Case(with_random_weights(made), inputs, WRITTEN, named)


def reader(
    name: str, model: str, options: Mapping[str, Any] = BERT, *attentions: str, **about: Any
) -> Family:
    """A model that classifies a text."""
    build = partial(classifier, model, options)
    about = {"needs": f"{model}Config", **about}
    return Family("Transformers", name, build, attentions or ("sdpa", "eager"), **about)


def writer(
    name: str,
    model: str,
    config: str | None = None,
    options: Mapping[str, Any] = HEADS,
    attentions: tuple[str, ...] = ("sdpa", "eager"),
    **about: Any,
) -> Family:
    """A model that continues a text."""
    config = config or model.removesuffix("ForCausalLM") + "Config"
    build = partial(_continuing, model, config, options)
    about = {"needs": model, "not_conserved": GATED, **about}
    return Family("Transformers", name, build, attentions, **about)


def pair(
    name: str,
    model: str,
    options: Mapping[str, Any],
    *attentions: str,
    model_class: str | None = None,
    **about: Any,
) -> Family:
    """A model that writes another text."""
    model_class = model_class or f"{model}ForConditionalGeneration"
    build = partial(_translating, model_class, f"{model}Config", options)
    attentions = attentions or ("sdpa", "eager")
    return Family("Transformers", name, build, attentions, needs=RECENT, **about)


def without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options but for some."""
    return {name: option for name, option in options.items() if name not in names}
