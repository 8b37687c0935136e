"""Models of Transformers have the same map with flex attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import with_random_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:return_lse is deprecated"),
]


SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}


def bert() -> Any:
    config = transformers.BertConfig(**SIZES, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**DECODER, sliding_window=3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [bert, llama, mistral])
def test_models_of_transformers(build: Callable[[], Any], method: str) -> None:
    model = with_random_weights(build().double()).eval()
    ids = torch.arange(3, 21).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    target = [1, 2] if build is bert else [(8, 17), (7, 4)]
    found = []
    for implementation in ("sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        attribute = METHODS[method](model).attribute
        found.append(attribute(ids, target, additional_forward_args=(mask,)))
    assert_close(found[1], found[0], relative=1e-8)


def test_soft_caps_of_transformers() -> None:
    config = transformers.Gemma2Config(
        **DECODER, sliding_window=3, attn_logit_softcapping=0.5, query_pre_attn_scalar=16
    )
    model = with_random_weights(transformers.Gemma2ForCausalLM(config)).eval()
    ids = torch.arange(3, 21).reshape(2, 9)
    for method in (TransformerAttribution, GenericAttentionRelevance, ConservativeLRP, AttnLRP):
        found = []
        for implementation in ("eager", "flex_attention"):
            model.set_attn_implementation(implementation)
            found.append(method(model).attribute(ids, (8, 17)))
        assert_close(found[1], found[0], relative=2e-5)


def test_generated_tokens() -> None:
    model = with_random_weights(llama().double()).eval()
    ids = torch.arange(3, 21).reshape(2, 9)
    found = []
    for implementation in ("sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        found.append(AttnLRP(model).attribute_generated(ids[:, :6], ids))
    assert_close(found[1], found[0])
