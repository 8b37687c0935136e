"""LeGrad refuses models whose head can't read each layer's tokens, and generated text."""

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from captum_transformer import LeGrad
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from tests.attr.copied_models import OpenClipVision
from tests.attr.subjects import subject
from tests.attr.tiny_models import CLASSES, drawn, ids, images, timm_vit, with_random_weights

TARGET = [1, 4, 0]


@pytest.mark.parametrize(
    ("forward", "x", "why"),
    [
        (lambda: subject("timm Swin").model, drawn(2, 3, 16, 16), "tokens are merged or dropped"),
        (
            lambda: with_random_weights(OpenClipVision(several=True)),
            images(),
            "tokens of several layers",
        ),
        (lambda: with_random_weights(OpenClipVision(turns=True)), images(), "keep their places"),
    ],
    ids=["merged tokens", "several layers", "tokens turned round"],
)
def test_refuses_heads_that_do_not_read_one_layers_tokens(forward, x, why: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=why):
        LeGrad(forward()).attribute(x, 1)


def test_refuses_class_attention() -> None:
    model = timm.create_model(
        "cait_xxs24_224", img_size=32, depth=2, depth_token_only=2, embed_dim=16, num_heads=2
    )
    with pytest.raises(UnsupportedOperationError, match="LeGrad lets the model's head read"):
        LeGrad(model).attribute(torch.rand(1, 3, 32, 32), 1)


def test_refuses_cross_attention() -> None:
    config = transformers.BartConfig(
        vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_labels=CLASSES,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=2, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    inputs = {"input_ids": ids(), "decoder_input_ids": ids()}
    with pytest.raises(UnsupportedOperationError, match="rules for cross-attention"):
        LeGrad(model).attribute(inputs, (3, 1))


def test_refuses_missing_layers_and_generated_text() -> None:
    with pytest.raises(InvalidLayerError, match="choose from -2 to 1"):
        LeGrad(timm_vit(), start_layer=2).attribute(images(), TARGET)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=30, n_positions=12)
    ).eval()
    with pytest.raises(UnsupportedOperationError, match="later ones"):
        LeGrad(model).attribute_generated(ids()[:, :4], ids())


class Latents(nn.Module):
    """Learned latents attend to the tokens once, then to themselves; a learned query reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, 3, 16))
        self.query = nn.Parameter(torch.zeros(1, 1, 16))
        self.read = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        latents, query = (p.expand(len(x), -1, -1) for p in (self.latents, self.query))
        first, *between, last = self.read
        latents = first(latents, x, x)[0]
        for layer in between:
            latents = latents + layer(latents, latents, latents)[0]
        return last(query, latents, latents)[0][:, 0]


def test_refuses_latents_without_a_path_to_a_token() -> None:
    with pytest.raises(UnsupportedOperationError, match="leads back to no token"):
        LeGrad(with_random_weights(Latents())).attribute(drawn(2, 5, 16), 1)
