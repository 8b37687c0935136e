"""Tiny models with random weights, and inputs for them."""

from typing import Any

import timm.models.vision_transformer
import torch
import torchvision
import transformers
from torch import Tensor, nn

CLASSES = 5


def drawn(*size: int, seed: int = 0) -> Tensor:
    """Standard normal values, the same at each call."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws weights, biases and embeddings large enough for every part to have an effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            continue  # a temperature
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1 and name.endswith("weight"):
            noise = 1 + 0.2 * noise
        elif parameter.ndim == 1:
            noise = 0.2 * noise
        else:
            noise = noise * 1.5 * parameter[0].numel() ** -0.5
        parameter.data.copy_(noise)
    return model.double().eval()


IMAGE = (8, 12)
# The sizes of tiny models that translate.
BART = {
    "vocab_size": 30,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 12,
}
T5 = {
    "vocab_size": 30,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


def images(samples: int = 3) -> Tensor:
    return drawn(samples, 3, *IMAGE, seed=1)


def timm_vit(**options: Any) -> nn.Module:
    sizes = {"img_size": IMAGE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    vit = timm.models.vision_transformer.VisionTransformer
    return with_random_weights(vit(**{**sizes, "num_classes": CLASSES, **options}))


def torchvision_vit() -> nn.Module:
    return with_random_weights(
        torchvision.models.VisionTransformer(
            image_size=8,
            patch_size=4,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
            num_classes=CLASSES,
        )
    )


def hf_vit(attention: str = "sdpa") -> nn.Module:
    config = transformers.ViTConfig(
        image_size=IMAGE,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.ViTForImageClassification(config))


def bert(attention: str = "sdpa") -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.BertForSequenceClassification(config))


LENGTHS = [7, 5, 3]


def ids() -> Tensor:
    return torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(2))


def mask() -> Tensor:
    return (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()


class EncoderClassifier(nn.Module):
    """``nn.TransformerEncoder`` on embeddings, with a mean over the tokens that aren't padding."""

    def __init__(self, *, batch_first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=batch_first, norm_first=norm_first, dropout=0.1
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = embeddings if self.batch_first else embeddings.transpose(0, 1)
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        kept = torch.ones_like(tokens[..., :1]) if padding is None else ~padding[..., None]
        return self.head((tokens * kept).sum(1) / kept.sum(1))


def embeddings() -> Tensor:
    return drawn(3, 7, 16, seed=3)


def encoder(**options: bool) -> nn.Module:
    return with_random_weights(EncoderClassifier(**options))


class PixelsAndIds(nn.Module):
    """Patches and words in one sequence, read from a learned token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.words = nn.Embedding(30, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.ModuleList(
            timm.models.vision_transformer.Block(16, 2, qkv_bias=True) for _ in range(2)
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        cls = self.cls.expand(len(ids), -1, -1)
        tokens = torch.cat([cls, patches, self.words(ids)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])
