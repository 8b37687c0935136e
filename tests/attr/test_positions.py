"""Positions have relevance of their own: what is added to tokens, and what rotary angles turn."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import GIM, AttnLRP, ConservativeLRP, LibraGrad
from captum_transformer.errors import InvalidInputError, UnsupportedOperationError
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import with_random_weights


class Half(torch.autograd.Function):
    """A factor of a product: the uniform rule gives it half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


def half(x: Tensor) -> Tensor:
    return Half.apply(x)


def turned(x: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return torch.cat([-two, one], -1)


class Rotary(nn.Module):
    """Layers of attention with rotary angles, position embeddings in front of them.

    Attributes:
        explicit: whether autograd is to have the gradients of AttnLRP, with angles as factors.
    """

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.rand(5, 8))
        self.qkv = nn.ModuleList(nn.Linear(8, 24, bias=False) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(layers))
        self.head = nn.Linear(8, 3)
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3])).repeat(1, 2).double()
        self.angles = [(angles.cos(), angles.sin()) for _ in range(layers)]
        self.explicit = False

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        share = half if self.explicit else (lambda tensor: tensor)
        for qkv, out, (cos, sin) in zip(self.qkv, self.out, self.angles, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            q, k = (share(y) * share(cos) + share(turned(y)) * share(sin) for y in (q, k))
            weights = torch.softmax(share(q) @ share(k.transpose(-1, -2)) / 2, -1)
            x = x + out((share(weights) @ share(v)).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


def by_hand(model: Rotary, x: Tensor) -> tuple[Tensor, Tensor]:
    """What tokens and positions have, as value times gradient of each."""
    angles = [
        tuple(part.expand(2, 2, 5, 4).clone().requires_grad_() for part in pair)
        for pair in model.angles
    ]
    kept, model.angles, model.explicit = model.angles, angles, True
    embedded, position = x.clone().requires_grad_(), model.position.expand(2, 5, 8)
    position = position.detach().clone().requires_grad_()
    parameter, model.position = model.position, nn.Parameter(torch.zeros(5, 8).double())
    model(embedded + position)[:, 1].sum().backward()
    model.position, model.angles, model.explicit = parameter, kept, False
    of_angles = sum((part * part.grad).sum((1, 3)) for pair in angles for part in pair)
    of_added = (position * position.grad).sum(-1)
    return (embedded * embedded.grad).detach(), (of_angles + of_added).detach()


def test_tokens_and_positions_are_as_by_hand() -> None:
    model = with_random_weights(Rotary())
    x = torch.rand(2, 5, 8, dtype=torch.float64)
    tokens, positions = by_hand(model, x)
    method = AttnLRP(model, positions="separate")

    assert_close(method.attribute(x, 1), tokens)
    assert_close(method.attribute_positions(x, 1), positions)
    together = AttnLRP(model, positions="add").attribute_tokens(x, 1)
    assert_close(together, tokens.sum(-1) + positions)


def llama(attention: str) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.LlamaForCausalLM(config))


IDS, TARGET = torch.tensor([[3, 14, 15, 9, 2], [6, 5, 3, 5, 8]]), (4, 7)


@pytest.mark.parametrize("method", [AttnLRP, GIM])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_angles_have_what_the_tokens_lose(method: Any, attention: str) -> None:
    # Of one layer without biases: in others the softmax below absorbs another part.
    model = llama(attention)
    alone = method(model).attribute(IDS, TARGET)
    apart = method(model, positions="separate")
    tokens, positions = apart.attribute(IDS, TARGET), apart.attribute_positions(IDS, TARGET)

    assert positions.abs().min() > 0
    assert_close(tokens.sum(1) + positions.sum(1), alone.sum(1), 1e-6)  # angles are in float32


@pytest.mark.parametrize("method", [ConservativeLRP, LibraGrad])
def test_angles_have_no_relevance_if_queries_and_keys_are_held(method: Any) -> None:
    model = llama("sdpa")

    assert not method(model, positions="separate").attribute_positions(IDS, TARGET).any()


def test_added_positions_have_what_the_account_says() -> None:
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=40, bos_token_id=0, eos_token_id=0
    )
    model = with_random_weights(transformers.GPT2LMHeadModel(config))
    positions = AttnLRP(model, positions="separate").attribute_positions(IDS, TARGET)

    assert_close(positions.sum(1), AttnLRP(model).account(IDS, TARGET).of("added constants"))


def test_biases_of_scores_are_no_positions_of_tokens() -> None:
    # Swin adds a bias for each pair of tokens in a window to the scores of its attention.
    model = with_random_weights(
        timm.models.swin_transformer.SwinTransformer(
            img_size=16,
            patch_size=2,
            embed_dim=8,
            depths=(2,),
            num_heads=(2,),
            window_size=4,
            num_classes=3,
        )
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)

    assert not AttnLRP(model, positions="separate").attribute_positions(images, 1).any()
    assert AttnLRP(model).account(images, 1).of("added constants").abs().min() > 0


def test_positions_of_a_vit_without_those_of_its_class_token() -> None:
    model = with_random_weights(
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4)
    )
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    positions = AttnLRP(model, positions="separate").attribute_positions(images, 3)

    embedded = model.pos_embed.detach().expand(2, -1, -1)
    (stream,) = AttnLRP(model).attribute_layers(images, ["pos_drop"], 3)
    with torch.no_grad():
        made = model._pos_embed(model.patch_embed(images))
    assert_close(positions, (stream / made * embedded).sum(-1)[:, 1:])


def test_methods_that_ignore_positions_have_none() -> None:
    with pytest.raises(InvalidInputError, match="This method ignores positions"):
        AttnLRP(Rotary()).attribute_positions(torch.rand(1, 5, 8), 1)
    with pytest.raises(InvalidInputError, match="must be one of"):
        AttnLRP(Rotary(), positions="apart")  # type: ignore[arg-type]


class Scaled(nn.Module):
    """Tokens that are scaled by their place, or mixed with those before them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.attend = form, nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix, self.embed, self.head = (
            nn.Parameter(torch.rand(8)),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(5.0).unsqueeze(1).expand(5, 8).to(x) / 3
        cos, sin, x = angles.cos(), angles.sin(), self.embed(x)
        if self.form == "token shift":
            x = x * self.mix + torch.roll(x, 1, 1) * (1 - self.mix)
        elif self.form == "scaled":
            x = x * cos * 2 + turned(x) * sin * 2
        elif self.form == "matrices":
            matrices = torch.stack([torch.diag(row) for row in cos])
            x = torch.einsum("bnd,nde->bne", x, matrices)
        elif self.form == "quotient":
            x = x / cos
        mixed: Tensor = self.attend(x, x, x, need_weights=False)[0]
        return self.head(mixed.mean(1))


@pytest.mark.parametrize("form", ["scaled", "matrices", "quotient"])
def test_positions_in_forms_that_are_not_known_are_refused(form: str) -> None:
    method = AttnLRP(with_random_weights(Scaled(form)), positions="separate")
    x = torch.rand(2, 5, 8, dtype=torch.float64)

    for attribute in (method.attribute, method.attribute_positions):
        with pytest.raises(UnsupportedOperationError, match="differs from token to token"):
            attribute(x, 1)


def test_mixing_tokens_with_those_before_is_no_rotation() -> None:
    model = with_random_weights(Scaled("token shift"))
    method, x = AttnLRP(model, positions="separate"), torch.rand(2, 5, 8, dtype=torch.float64)

    assert not method.attribute_positions(x, 1).any()
    assert_close(method.attribute(x, 1), AttnLRP(model).attribute(x, 1))


def test_positions_are_not_added_to_layers() -> None:
    model = with_random_weights(
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4)
    )
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    added, alone = (
        AttnLRP(model, positions=positions).attribute_layers(images, ["pos_drop"], 3)[0]
        for positions in ("add", "ignore")
    )

    assert_close(added, alone)


class Repeated(nn.Module):
    """Positions are added again behind each attention, with or without a skip connection."""

    def __init__(self, *, skip: bool, one_by_one: bool) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.rand(5, 8))
        self.qkv = nn.ModuleList(nn.Linear(8, 24, bias=False) for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.skip, self.one_by_one = skip, one_by_one

    def forward(self, x: Tensor) -> Tensor:
        for qkv in self.qkv:
            parts = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            heads = zip(*(part.unbind(1) for part in parts), strict=True)
            made = (
                torch.cat([F.scaled_dot_product_attention(*head) for head in heads], -1)
                if self.one_by_one
                else F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
            )
            x = made + self.position + x if self.skip else made + self.position
        return self.head(x[:, 0])


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_positions_behind_attention_belong_to_the_tokens_that_ask(
    skip: bool, one_by_one: bool
) -> None:
    model = with_random_weights(Repeated(skip=skip, one_by_one=one_by_one))
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = LibraGrad(model, positions="separate").attribute_positions(x, 1)

    def attend(x: Tensor, qkv: nn.Module) -> Tensor:
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT / 2).softmax(-1).detach() @ v).transpose(1, 2).flatten(2)

    expected = []
    for sample in x.split(1):
        y = sample
        added = [model.position.detach().clone().requires_grad_() for _ in range(2)]
        for qkv, position in zip(model.qkv, added, strict=True):
            y = attend(y, qkv) + position + (y if skip else 0.0)
        gradients = torch.autograd.grad(model.head(y[:, 0])[:, 1].sum(), added)
        parts = [(p * g).sum(-1) for p, g in zip(added, gradients, strict=True)]
        expected.append(sum(parts))
    assert_close(found, torch.stack(expected).detach())
