"""Relevance patching: exact where a model is made of what its rules take as straight lines."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import Contrast, LibraGrad, RelevancePatching
from captum_transformer.errors import (
    InvalidInputError,
    InvalidLayerError,
    UnsupportedOperationError,
)
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import with_random_weights


class Linear(nn.Module):
    """A residual stream with branches, and a score that is linear in each of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x.mean(1))


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(*shape, dtype=torch.float64), torch.rand(*shape, dtype=torch.float64)


def patched(model: nn.Module, layer: nn.Module, clean: Any, corrupted: Any, score: Any) -> Tensor:
    """What patching a layer's whole output changes, by running the model again."""
    made: list[Tensor] = []
    with torch.no_grad():
        hook = layer.register_forward_hook(lambda *given: made.append(given[-1]))
        score(model(clean))
        before = score(model(corrupted))
        hook.remove()
        hook = layer.register_forward_hook(lambda *_: made[0])
        after = score(model(corrupted))
        hook.remove()
    return after - before


def test_it_is_activation_patching_where_the_model_is_linear() -> None:
    model = with_random_weights(Linear())
    clean, corrupted = pair(2, 3, 4)
    found = RelevancePatching(model).attribute(clean, corrupted, list(model.branches), 1)

    for layer, scores in zip(model.branches, found, strict=True):
        expected = patched(model, layer, clean, corrupted, lambda logits: logits[:, 1])
        assert_close(scores.sum((1, 2)), expected)


class Gated(nn.Module):
    """An activation whose slope f(x) / x differs from its derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.act, self.out = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.into(x)))


def test_the_coefficient_is_the_slope_and_not_the_derivative() -> None:
    model = with_random_weights(Gated())
    clean, corrupted = pair(2, 4)
    (scores,) = RelevancePatching(model).attribute(clean, corrupted, ["into"], 1)
    (plain,) = RelevancePatching(model, rules={}).attribute(clean, corrupted, ["into"], 1)

    one, other = model.into(clean).detach(), model.into(corrupted).detach()
    slope = F.gelu(other) / other * model.out.weight[1].detach()
    leaf = other.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(F.gelu(leaf).sum(), leaf)
    assert_close(scores, (one - other) * slope)
    assert_close(plain, (one - other) * derivative * model.out.weight[1].detach())


def gpt2() -> Any:
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=40, bos_token_id=0, eos_token_id=0
    )
    return with_random_weights(transformers.GPT2LMHeadModel(config))


IDS = torch.tensor([[3, 14, 15, 9], [2, 6, 5, 3]]), torch.tensor([[3, 24, 15, 9], [2, 6, 7, 3]])
ANSWER = Contrast((3, 1), (3, 2))


def test_heads_add_up_to_the_attention() -> None:
    model = gpt2()
    heads = RelevancePatching(model).attribute_heads(*IDS, ANSWER)
    into = RelevancePatching(model).attribute(
        *IDS,
        [f"transformer.h.{i}.attn.c_proj" for i in range(2)],
        ANSWER,
        attribute_to_layer_input=True,
    )

    for of_heads, scores in zip(heads, into, strict=True):
        assert_close(of_heads, scores.unflatten(-1, (2, -1)).sum(-1).transpose(1, 2))


def test_nothing_changes_before_the_first_difference() -> None:
    (scores,) = RelevancePatching(gpt2()).attribute(*IDS, ["transformer.h.0"], ANSWER)

    changes = scores.any(-1)
    assert changes.tolist() == [[False, True, True, True], [False, False, True, True]]


def test_batches_are_alike() -> None:
    model, layers = gpt2(), ["transformer.h.0.mlp"]
    together = RelevancePatching(model).attribute(*IDS, layers, ANSWER)
    parts = RelevancePatching(model).attribute(*IDS, layers, ANSWER, internal_batch_size=1)

    assert_close(together[0], parts[0])


def test_a_batch_that_is_not_divided_may_have_samples_anywhere() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).mean(0)

    patching = RelevancePatching(TokensFirst())
    clean, corrupted = torch.randn(2, 2, 5, 8)

    whole = patching.attribute(clean, corrupted, ["layer"], 1)
    alike = patching.attribute(clean, corrupted, ["layer"], 1, internal_batch_size=2)
    assert_close(alike[0], whole[0])
    with pytest.raises(UnsupportedOperationError, match="can't be joined"):
        patching.attribute(clean, corrupted, ["layer"], 1, internal_batch_size=1)


def test_inputs_of_other_shapes_are_refused() -> None:
    clean, corrupted = IDS
    with pytest.raises(InvalidInputError, match=r"'input_ids' has the shape \(2, 4\) in the clean"):
        RelevancePatching(gpt2()).attribute(clean, corrupted[:, :3], ["transformer.h.0"], ANSWER)
    with pytest.raises(InvalidInputError, match="has the shape"):
        RelevancePatching(gpt2()).attribute_heads(clean, corrupted[:1], ANSWER)


def test_layers_that_do_not_run_are_refused() -> None:
    with pytest.raises(InvalidLayerError, match=r"There is no module 'transformer\.h\.7'"):
        RelevancePatching(gpt2()).attribute(*IDS, ["transformer.h.7"], ANSWER)


class Routed(nn.Module):
    """Two experts, each for the tokens whose first value has one sign, and a layer behind them."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))
        self.spelling, self.behind = spelling, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        to_first = tokens.detach()[:, 0] > 0
        found = torch.zeros_like(tokens)
        if self.spelling == "sorted":
            order = to_first.int().argsort(stable=True)
            parts = tokens[order].split([int((~to_first).sum()), int(to_first.sum())])
            made = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
            found = torch.cat(made)[order.argsort()]
        if self.spelling.startswith("product"):
            chosen = torch.stack([~to_first, to_first])
            slots = (chosen.cumsum(1) - 1).masked_fill(~chosen, len(tokens))
            one_hot = F.one_hot(slots, len(tokens) + 1)[..., :-1].to(x.dtype)  # (e, tokens, slots)
            if self.spelling == "product":
                picked = torch.einsum("etc,td->ecd", one_hot, tokens)
            elif self.spelling == "product by @":
                picked = one_hot.mT @ tokens
            else:
                picked = (one_hot[..., None] * tokens[:, None]).sum(1)
            made = torch.stack([expert(p) for expert, p in zip(self.experts, picked, strict=True)])
            found = torch.einsum("etc,ecd->td", one_hot, made)
        for chosen, expert in zip((~to_first, to_first), self.experts, strict=True):
            if self.spelling == "masked":
                found[chosen] = expert(tokens[chosen])
            elif self.spelling == "added":
                (rows,) = chosen.nonzero(as_tuple=True)
                found = found.index_add(0, rows, expert(tokens[rows]))
        return self.behind(x + found.view_as(x)).mean(1)


SPELLINGS = ["masked", "added", "sorted", "product", "product by @", "product and sum"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_experts_that_get_other_tokens_are_refused(spelling: str) -> None:
    clean, corrupted = pair(2, 3, 4)
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, -1]])
    clean[..., 0] *= signs
    corrupted[..., 0] *= signs
    model = with_random_weights(Routed(spelling))
    patching, layers = RelevancePatching(model), ["experts.0", "experts.1", "behind"]
    assert len(patching.attribute(clean, corrupted, layers, 1)) == 3

    corrupted[0, :, 0] *= -1
    corrupted[1, :, 0] *= -1
    for layer in layers[:2]:
        with pytest.raises(InvalidInputError, match="of other tokens in the clean run"):
            patching.attribute(clean, corrupted, [layer], 1)
    change = patched(model, model.behind, clean, corrupted, lambda output: output[:, 1])
    (behind,) = patching.attribute(clean, corrupted, ["behind"], 1)
    assert_close(behind.sum((1, 2)), change)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_libra_conserves_the_score_up_to_constants(pooling: str) -> None:
    model = with_random_weights(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4, global_pool=pooling
        )
    )
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    account = LibraGrad(model).account(images, 3)

    assert_close(account.total, model(images)[:, 3].detach())
    assert abs(account.shares().get("the rest", 0.0)) < 1e-9
    assert account.of("biases").abs().min() > 0
