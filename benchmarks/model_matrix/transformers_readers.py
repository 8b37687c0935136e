"""Families of Transformers that classify a text."""

from __future__ import annotations

from benchmarks.model_matrix.family import CLASSES, Case, Family
from benchmarks.model_matrix.transformers_text import (
    BERT,
    GATED,
    HEADS,
    RECENT,
    classifier,
    reader,
)

_BOTTLENECK = {
    "embedding_size": 8,
    "intra_bottleneck_size": 8,
    "num_feedforward_networks": 2,
    "intermediate_size": 16,
}
_ONE_GROUP = {
    f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")
}
_ENTITIES = {"entity_vocab_size": 10, "entity_emb_size": 8}


def _big_bird(attention: str) -> Case:
    """Long enough for blocks that do not attend to each other."""
    options = {
        **BERT,
        "hidden_act": "gelu",
        "block_size": 2,
        "num_random_blocks": 1,
        "max_position_embeddings": 32,
    }
    return classifier("BigBird", options, attention, length=32)


READERS = [
    reader("BERT", "Bert", kind="words"),
    reader("RoBERTa", "Roberta", {**BERT, "pad_token_id": 1}),
    reader("XLM-R", "XLMRoberta", {**BERT, "pad_token_id": 1}),
    reader("ELECTRA", "Electra", {**BERT, "embedding_size": 8}),
    reader(
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
    reader("ALBERT", "Albert", {**BERT, "embedding_size": 8}, kind="shared layers"),
    reader("MPNet", "MPNet", {**BERT, "pad_token_id": 1, "vocab_size": 60}, "eager"),
    reader(
        "DeBERTa",
        "Deberta",
        {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "eager",
    ),
    reader(
        "DeBERTa v2",
        "DebertaV2",
        {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "eager",
        kind="disentangled attention",
    ),
    reader(
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
        not_conserved=GATED,
        kind="local attention",
    ),
    reader(
        "Longformer",
        "Longformer",
        {**BERT, "attention_window": [4, 4], "pad_token_id": 1},
        "eager",
        kind="attention in chunks",
    ),
    reader(
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
    reader("FNet", "FNet", BERT, "eager", needs=RECENT, kind="Fourier mixing"),
    reader("MobileBERT", "MobileBert", {**BERT, **_BOTTLENECK}, needs=RECENT),
    reader(
        "SqueezeBERT",
        "SqueezeBert",
        {**BERT, **_ONE_GROUP, "embedding_size": 16},
        "eager",
        needs=RECENT,
    ),
    reader(
        "ConvBERT",
        "ConvBert",
        {
            **BERT,
            "num_attention_heads": 4,
            "embedding_size": 8,
            "head_ratio": 2,
            "conv_kernel_size": 3,
        },
        "eager",
        needs=RECENT,
        kind="attention beside dynamic convolutions",
    ),
    reader(
        "Funnel",
        "Funnel",
        {
            "vocab_size": 30,
            "block_sizes": [1, 1],
            "d_model": 16,
            "n_head": 2,
            "d_head": 8,
            "d_inner": 32,
            "num_decoder_layers": 1,
            "num_labels": CLASSES,
            "pad_token_id": 0,
        },
        "eager",
        needs=RECENT,
        kind="pooled queries",
    ),
    Family(
        "Transformers",
        "BigBird",
        _big_bird,
        ("eager",),
        needs=RECENT,
        kind="attention in blocks, some at random",
    ),
    reader(
        "Perceiver",
        "Perceiver",
        {
            "vocab_size": 30,
            "num_latents": 4,
            "d_latents": 16,
            "d_model": 16,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "max_position_embeddings": 16,
            "num_labels": CLASSES,
        },
        "eager",
        needs=RECENT,
        not_conserved="learned latents take relevance",
        kind="latents that read a text",
    ),
    reader("RoFormer", "RoFormer", {**BERT, "embedding_size": 16}, "eager", needs=RECENT),
    reader(
        "XLM",
        "XLM",
        {
            "vocab_size": 30,
            "emb_dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "max_position_embeddings": 16,
            "num_labels": CLASSES,
            "n_langs": 1,
            "pad_index": 0,
        },
        "eager",
        needs=RECENT,
    ),
    reader("EuroBERT", "EuroBert", {**HEADS, "num_labels": CLASSES}, not_conserved=GATED),
    reader("NomicBERT", "NomicBert", not_conserved=GATED),
    reader("LUKE", "Luke", {**BERT, **_ENTITIES, "pad_token_id": 1}, "eager", needs=RECENT),
]
