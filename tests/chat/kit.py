"""A tiny model with its real processor, and pictures and sounds for it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

QUESTION = "what is on the left ?"
_WORDS = "what is on the left right red blue square circle a picture sound ? . user assistant"
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }} {% for part in turn['content'] %}"
    "{% if part['type'] == 'text' %} {{ part['text'] }} {% else %} MEDIA {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant {% endif %}"
)
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "head_dim": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Kit(NamedTuple):
    """A model and its processor."""

    model: Any
    processor: Any

    def prompt(self, media: Sequence[Any]) -> Any:
        """The processor's output for a question about some images, or some sounds."""
        kind = "image" if hasattr(self.processor, "image_processor") else "audio"
        parts = [{"type": kind, kind: each} for each in media]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}
        text = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        if kind == "image":
            return self.processor(text=text, images=list(media), return_tensors="pt")
        return self.processor(text=text, audio=list(media), return_tensors="pt")

    def pixels(self, pictures: list[Any]) -> torch.Tensor:
        """The pixels that the processor makes of pictures."""
        made = self.processor.image_processor(images=pictures, return_tensors="pt")
        return made["pixel_values"]

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Generates four words."""
        special = [[each] for each in self.processor.tokenizer.all_special_ids]
        return self.model.generate(
            **prompt,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            bad_words_ids=special,
            **options,
        )


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(seed: int = 0) -> Any:
    """Half a second of noise."""
    return np.random.default_rng(seed).normal(size=8000).astype(np.float32)


def tokenizer_of(*special: str, **named: str) -> Any:
    names = ["<pad>", "<s>", "</s>", "<unk>", *special]
    vocabulary = {word: number for number, word in enumerate([*names, *_WORDS.split()])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={f"extra_{n}": name for n, name in enumerate(special)},
    )
    for name, token in named.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def kit_of(model: Any, processor: Any) -> Kit:
    """Draws weights for which every part has an effect."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 0.3 if parameter.dim() > 1 else 0.1
        base = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
        nn.init.normal_(parameter, base, scale, generator=generator)
    return Kit(model.eval(), processor)


def sized(vocabulary: Any, **more: Any) -> dict[str, Any]:
    return {**TEXT, "vocab_size": len(vocabulary), **more}
