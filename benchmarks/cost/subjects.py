"""The models whose explanations are timed, with random weights and inputs of their usual size."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Subject:
    """A model and what to ask it.

    Attributes:
        name: as printed.
        model: the model, in evaluation mode.
        inputs: what our methods get: pixels or token ids.
        features: the first differentiable tensor: pixels or embeddings of the ids.
        run: the scores ``(samples, classes)``, as a function of the features.
        target: the target in Captum's form, for our methods.
        last_norm: the last block's first norm, for Grad-CAM; its output is ``(samples, ...)``.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    features: Tensor
    run: Callable[[Tensor], Tensor]
    target: Any
    last_norm: nn.Module

    def with_samples(self, count: int) -> "Subject":
        """The same with so many samples."""
        inputs, features = (
            tensor[:1].expand(count, *tensor.shape[1:]).clone()
            for tensor in (self.inputs, self.features)
        )
        if self.features is self.inputs:
            features = inputs
        return replace(self, inputs=inputs, features=features)


def _image_model(name: str, architecture: str, last_norm: Callable[[Any], nn.Module]) -> Any:
    def build(factory: dict[str, Any]) -> Subject:
        model: Any = timm.create_model(architecture).to(**factory).eval()
        size = timm.data.resolve_model_data_config(model)["input_size"]
        pixels = torch.rand(1, *size, **factory)
        return Subject(name, model, pixels, pixels, model, 0, last_norm(model))

    return build


def text_model(
    name: str, model: Any, tokens: int, factory: dict[str, Any], last_norm: nn.Module
) -> Subject:
    """A model that classifies a text of so many random tokens."""
    model = model.to(**factory).eval()
    ids = torch.randint(1, model.config.vocab_size, (1, tokens), device=factory["device"])

    def run(embeddings: Tensor) -> Tensor:
        scores: Tensor = model(inputs_embeds=embeddings).logits
        # Of a language model, those of the next token.
        return scores if scores.ndim == 2 else scores[:, -1]

    embeddings = model.get_input_embeddings()(ids).detach()
    language_models = transformers.GPT2LMHeadModel, transformers.LlamaForCausalLM
    target = (-1, 0) if isinstance(model, language_models) else 0
    return Subject(f"{name}, {tokens} tokens", model, ids, embeddings, run, target, last_norm)


def _bert(factory: dict[str, Any]) -> Subject:
    model = transformers.BertForSequenceClassification(transformers.BertConfig())
    norm = model.bert.encoder.layer[-1].attention.output.LayerNorm
    return text_model("BERT-base", model, 128, factory, norm)


def _gpt2(factory: dict[str, Any]) -> Subject:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    return text_model("GPT-2 small", model, 128, factory, model.transformer.h[-1].ln_1)


def large_image(side: int, factory: dict[str, Any]) -> Subject:
    """A ViT-S/16 on an image of so many pixels a side."""
    model: Any = timm.create_model("vit_small_patch16_224", img_size=side, num_classes=10)
    model = model.to(**factory).eval()
    pixels = torch.rand(1, 3, side, side, **factory)
    tokens = model.patch_embed.num_patches
    return Subject(f"ViT-S/16, {tokens} patches", model, pixels, pixels, model, 0, model.norm)


def long_encoder(tokens: int, factory: dict[str, Any]) -> Subject:
    """A BERT of two layers of width 128."""
    config = transformers.BertConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=tokens,
    )
    model = transformers.BertForSequenceClassification(config)
    norm = model.bert.encoder.layer[-1].attention.output.LayerNorm
    return text_model("BERT (2 layers, width 128)", model, tokens, factory, norm)


def long_decoder(tokens: int, factory: dict[str, Any]) -> Subject:
    """A Llama of two layers of width 128, with grouped queries, that classifies its input."""
    config = transformers.LlamaConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=384,
        max_position_embeddings=tokens,
        pad_token_id=0,
        use_cache=False,
    )
    model = transformers.LlamaForSequenceClassification(config)
    norm = model.model.norm
    return text_model("Llama (2 layers, width 128)", model, tokens, factory, norm)


def _last_block(model: Any) -> nn.Module:
    norm: nn.Module = model.blocks[-1].norm1
    return norm


def _last_window(model: Any) -> nn.Module:
    norm: nn.Module = model.layers[-1].blocks[-1].norm1
    return norm


SUBJECTS: dict[str, Callable[[dict[str, Any]], Subject]] = {
    "vit_b": _image_model("ViT-B/16", "vit_base_patch16_224", _last_block),
    "vit_l": _image_model("ViT-L/16", "vit_large_patch16_224", _last_block),
    "bert": _bert,
    "gpt2": _gpt2,
    "swin_t": _image_model("Swin-T", "swin_tiny_patch4_window7_224", _last_window),
    "vit_ti": _image_model("ViT-Ti/16", "vit_tiny_patch16_224", _last_block),
    "test_vit": _image_model("test ViT", "test_vit", _last_block),
}
