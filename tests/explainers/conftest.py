"""Tiny readers of texts with a tokenizer of words."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

WORDS = "who lives in Paris ? Anna Berg and Tom live there , not Rome .".split()


@pytest.fixture(scope="session")
def tokenizer():
    """Each word is a token, but for what begins with a capital letter, which is two."""
    pieces = [p for word in WORDS for p in _pieces(word)]
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *dict.fromkeys(pieces)])}
    words = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix="##")
    )
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=40,
        **{f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "PAD", "CLS", "SEP", "MASK")},
    )


def _pieces(word):
    return [word[:2], f"##{word[2:]}"] if word[0].isupper() else [word]


CLASSES = {
    "class": BertForSequenceClassification,
    "words": BertForTokenClassification,
    "answer": BertForQuestionAnswering,
    "masked word": BertForMaskedLM,
    "next word": GPT2LMHeadModel,
}


@pytest.fixture(scope="session")
def readers(tokenizer):
    """A model for each task, in training mode, with weights that make scores differ."""
    torch.manual_seed(0)
    labels = {0: "O", 1: "B-PER", 2: "I-PER"}
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 40, "initializer_range": 0.5,
        "vocab_size": len(tokenizer),
    }  # fmt: skip
    numbers = {name: number for number, name in labels.items()}
    bert = BertConfig(**sizes, id2label=labels, label2id=numbers)
    configs = {
        "answer": BertConfig(**sizes),
        "next word": GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
        ),
    }
    return {task: kind(configs.get(task, bert)).train() for task, kind in CLASSES.items()}
