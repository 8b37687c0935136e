"""Tiny models of Transformers with a decoder: detection, translation, speech, next tokens."""

import torch
import transformers
from torch import Tensor, nn

from tests.attr.subjects import Subject
from tests.attr.tiny_models import BART, CLASSES, LENGTHS, T5, drawn, ids, mask, with_random_weights

VOCABULARY = 30
# (position, token): the decoder's output there is explained.
STEPS = [(3, 7), (1, 12), (2, 0)]


def started() -> Tensor:
    """What the decoder has written so far."""
    return torch.randint(1, VOCABULARY, (3, 4), generator=torch.Generator().manual_seed(6))


def detr(attention: str) -> Subject:
    """The target is a pair: which query, and which class."""
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
    return Subject(
        with_random_weights(transformers.DetrForObjectDetection(config)),
        {"pixel_values": drawn(3, 3, 16, 24, seed=1)},
        target=[(2, 1), (0, 4), (3, 0)],
        named={"pixel_mask": image_mask()},
        tokens=(6,),
    )


def image_mask() -> Tensor:
    columns = torch.tensor([24, 16, 8])
    return (torch.arange(24) < columns[:, None]).long()[:, None].expand(3, 16, 24).contiguous()


def _translating(model: nn.Module) -> Subject:
    return Subject(
        with_random_weights(model),
        {"input_ids": ids(), "decoder_input_ids": started()},
        target=STEPS,
        named={"attention_mask": mask()},
        tokens=(7, 4),
    )


def t5(attention: str) -> Subject:
    config = transformers.T5Config(
        **T5,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=6,
        attn_implementation=attention,
    )
    return _translating(transformers.T5ForConditionalGeneration(config))


def bart(attention: str) -> Subject:
    config = transformers.BartConfig(**BART, scale_embedding=True, attn_implementation=attention)
    return _translating(transformers.BartForConditionalGeneration(config))


def whisper(attention: str) -> Subject:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=6,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=8,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation=attention,
    )
    return Subject(
        with_random_weights(transformers.WhisperForConditionalGeneration(config)),
        {"input_features": drawn(3, 6, 16, seed=7), "decoder_input_ids": started()},
        target=STEPS,
        tokens=(8, 4),
    )


def continuing(model: nn.Module) -> Subject:
    """The next token at the end of each text."""
    return Subject(
        with_random_weights(model),
        {"input_ids": ids()},
        target=[(length - 1, token) for length, token in zip(LENGTHS, (7, 12, 0), strict=True)],
        named={"attention_mask": mask()},
        tokens=(7,),
    )


def gpt2(attention: str) -> Subject:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        attn_implementation=attention,
    )
    return continuing(transformers.GPT2LMHeadModel(config))


GROUPED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(attention: str) -> Subject:
    config = transformers.LlamaConfig(**GROUPED, attn_implementation=attention)
    return continuing(transformers.LlamaForCausalLM(config))


def qwen3(attention: str) -> Subject:
    config = transformers.Qwen3Config(**GROUPED, attn_implementation=attention)
    return continuing(transformers.Qwen3ForCausalLM(config))


def gemma3(attention: str) -> Subject:
    """Sliding windows in one layer, scaled embeddings, and logits that a tanh bounds."""
    config = transformers.Gemma3TextConfig(
        **GROUPED,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=4,
        final_logit_softcapping=5.0,
        attn_implementation=attention,
    )
    return continuing(transformers.Gemma3ForCausalLM(config))


def mixtral(attention: str) -> Subject:
    """Each token goes through two of three experts."""
    config = transformers.MixtralConfig(
        **GROUPED,
        num_local_experts=3,
        num_experts_per_tok=2,
        attn_implementation=attention,
        experts_implementation="eager",  # the grouped one has no float64
    )
    return continuing(transformers.MixtralForCausalLM(config))
