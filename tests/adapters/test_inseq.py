"""inseq finds the methods of this package by name."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captum_transformer import AttnLRP, GenericAttentionRelevance
from captum_transformer.adapters.inseq import register

inseq = pytest.importorskip("inseq")

WORDS = "a cat sat on the mat and saw dogs".split()


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: n for n, word in enumerate(["<pad>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<pad>", bos_token="<pad>",
        unk_token="<pad>", padding_side="left",
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("name", "method"), [
    ("attn_lrp", AttnLRP), ("generic_attention_relevance", GenericAttentionRelevance),
])  # fmt: skip
def test_a_generated_text(model, tokenizer, name, method):
    assert register() is register()
    assert name in inseq.list_feature_attribution_methods()
    before = [parameter.clone() for parameter in model.parameters()]
    loaded = inseq.load_model(model, name, tokenizer=tokenizer)
    text, whole = "a cat sat", "a cat sat on the"
    out = loaded.attribute(
        text, whole, attributed_fn="logit", show_progress=False,
        generation_args={"skip_special_tokens": True},
    )  # fmt: skip
    found = out.sequence_attributions[0].target_attributions
    ids = tokenizer(whole, return_tensors="pt").input_ids
    prefix = ids[:, :4]  # what is before "the"
    expected = method(lambda ids: model(input_ids=ids).logits[:, -1]).attribute(
        prefix, target=int(ids[0, 4])
    )
    torch.testing.assert_close(found[:4, -1], expected[0], rtol=1e-3, atol=1e-5)
    assert all(map(torch.equal, before, model.parameters()))
