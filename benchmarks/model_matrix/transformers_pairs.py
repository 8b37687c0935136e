"""Families of Transformers that write a text of another one."""

from __future__ import annotations

from benchmarks.model_matrix.transformers_text import GATED, SEQ2SEQ, T5, pair, without

PAIRS = [
    pair("T5", "T5", T5, kind="encoder and decoder"),
    pair("LongT5", "LongT5", {**T5, "local_radius": 3}, "eager", kind="attention in blocks"),
    pair("BART", "Bart", SEQ2SEQ),
    pair(
        "LED",
        "LED",
        {
            **without(SEQ2SEQ, "max_position_embeddings"),
            "attention_window": [4, 4],
            "max_encoder_position_embeddings": 16,
            "max_decoder_position_embeddings": 16,
        },
        "eager",
    ),
    pair("Marian", "Marian", SEQ2SEQ, model_class="MarianMTModel"),
    pair("mT5", "MT5", T5, not_conserved=GATED),
    pair(
        "Switch Transformers",
        "SwitchTransformers",
        {
            **T5,
            "num_decoder_layers": 2,
            "num_experts": 4,
            "expert_capacity": 16,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
        },
        "eager",
        not_conserved=GATED,
    ),
    pair(
        "PEGASUS-X",
        "PegasusX",
        {**SEQ2SEQ, "num_global_tokens": 2, "block_size": 4, "stagger_local_blocks": False},
        "eager",
        not_conserved="learned global tokens take relevance",
    ),
]
