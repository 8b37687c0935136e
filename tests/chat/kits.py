"""Tiny models that see, hear and read, with random weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from tests.chat.kit import TEMPLATE, Kit, kit_of, sized, tokenizer_of

_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_TILE = {"height": 16, "width": 16}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 10000.0}


def _qwen(name: str, videos: str, vision: dict[str, Any]) -> Kit:
    tokenizer = tokenizer_of(
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    images = transformers.Qwen2VLImageProcessor(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 64, "longest_edge": 1024},
    )
    template = TEMPLATE.replace("MEDIA", "<|vision_start|> <|image_pad|> <|vision_end|>")
    made = getattr(transformers, f"{name}Processor")
    config = getattr(transformers, f"{name}Config")(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        text_config=sized(tokenizer, rope_parameters=_ROPE, rope_scaling=_ROPE),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    frames = getattr(transformers, videos)(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 64, "longest_edge": 2048},
    )
    return kit_of(model, made(images, tokenizer, frames, template))


def qwen2_5_vl() -> Kit:
    return _qwen(
        "Qwen2_5_VL", "Qwen2VLVideoProcessor", {"window_size": 16, "fullatt_block_indexes": [1]}
    )


def qwen3_vl() -> Kit:
    return _qwen(
        "Qwen3VL",
        "Qwen3VLVideoProcessor",
        {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    )


def llava() -> Kit:
    tokenizer = tokenizer_of("<image>", image_token="<image>")
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_TILE),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("MEDIA", "<image>"),
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION, image_size=16, patch_size=4),
        text_config=transformers.LlamaConfig(**sized(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
    )
    return kit_of(transformers.LlavaForConditionalGeneration(config), processor)


def intern_vl() -> Kit:
    tokenizer = tokenizer_of(
        "<IMG_CONTEXT>",
        "<img>",
        "</img>",
        "<video>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = transformers.GotOcr2ImageProcessor(
        size=_TILE, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = transformers.InternVLProcessor(
        images,
        tokenizer,
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("MEDIA", "<IMG_CONTEXT>"),
    )
    config = transformers.InternVLConfig(
        vision_config={**_VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config=sized(tokenizer, model_type="qwen2"),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    return kit_of(transformers.InternVLForConditionalGeneration(config), processor)


def gemma3() -> Kit:
    tokenizer = tokenizer_of(
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=_TILE),
        tokenizer,
        TEMPLATE.replace("MEDIA", "<start_of_image>"),
        image_seq_length=4,
    )
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**_VISION, image_size=16, patch_size=4),
        text_config=transformers.Gemma3TextConfig(
            **sized(tokenizer, query_pre_attn_scalar=4, sliding_window=64)
        ),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    return kit_of(transformers.Gemma3ForConditionalGeneration(config), processor)


def smol_vlm() -> Kit:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = tokenizer_of(
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
        *tiles,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    images = transformers.SmolVLMImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    # SmolVLM's own asks for a package that plays videos; for images it is this one.
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=TEMPLATE.replace("MEDIA", "<image>")
    )
    config = transformers.SmolVLMConfig(
        vision_config={**_VISION, "image_size": 16, "patch_size": 4},
        text_config=sized(tokenizer, model_type="llama"),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    return kit_of(transformers.SmolVLMForConditionalGeneration(config), processor)


def qwen2_audio() -> Kit:
    tokenizer = tokenizer_of("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    features = transformers.WhisperFeatureExtractor(
        feature_size=8, chunk_length=1, nb_max_frames=100
    )
    template = TEMPLATE.replace("MEDIA", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 8,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "max_source_positions": 50,
        },
        text_config=sized(tokenizer, model_type="qwen2"),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = transformers.Qwen2AudioForConditionalGeneration(config)
    return kit_of(model, transformers.Qwen2AudioProcessor(features, tokenizer, template))


def gpt2(seed: int) -> Any:
    """A language model, without a processor."""
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=20, initializer_range=0.5, pad_token_id=0
    )
    return GPT2LMHeadModel(config).double().eval()


SEEING: list[Callable[[], Kit]] = [qwen2_5_vl, qwen3_vl, llava, intern_vl, gemma3, smol_vlm]
