"""GIM has the gradients of its paper: a softmax at a temperature, frozen norms, shared products."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import GIM, extend
from captum_transformer.errors import InvalidInputError
from captum_transformer.rules.gradient.tables import ForwardRules
from captum_transformer.rules.gradient.temperature import at_temperature
from captum_transformer.trace import blocks
from tests.attr.decoders import (
    FUTURE,
    HEADS,
    SAMPLES,
    TOKENS,
    WIDTH,
    Block,
    Decoder,
    fused,
    split,
    written_out,
)
from tests.attr.subjects import assert_close
from tests.attr.tiny_models import drawn, timm_vit, with_random_weights

# The last query attends to no key, and no query attends to the first key.
EMPTY = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
EMPTY[-1] = EMPTY[:, 0] = False
ADDED = drawn(HEADS, TOKENS, TOKENS, seed=9).masked_fill(FUTURE, -torch.inf)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.9},
    "boolean mask with empty rows": {"attn_mask": EMPTY},
    "added mask": {"attn_mask": ADDED},
}


class Softened(torch.autograd.Function):
    """The paper's rule: the Jacobian of the softmax at a temperature."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:
        ctx.soft = torch.softmax(scores / temperature, -1).nan_to_num(0.0)
        return torch.softmax(scores, -1).nan_to_num(0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        jacobian = torch.diag_embed(ctx.soft) - ctx.soft[..., None] * ctx.soft[..., None, :]
        return (jacobian @ gradients[0][..., None])[..., 0], None


def shared(tensor: Tensor, share: float) -> Tensor:
    """The tensor with a share of its gradient."""
    return tensor.detach() * (1 - share) + tensor * share


class ByHand(Block):
    """The block with the gradients of GIM, for autograd."""

    def norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        deviation = (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / deviation * norm.weight + norm.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.norms[0], x)
        key, value = (split(t) for t in self.kv(y).chunk(2, -1))
        query, key, value = (
            shared(split(self.q(y)), 1 / 4),
            shared(key, 1 / 4),
            shared(value, 1 / 2),
        )
        x = x + self.attend(query, key, value).transpose(1, 2).flatten(2)
        y = self.norm(self.norms[1], x)
        gate, up = F.silu(self.gate(y)), self.up(y)
        return x + self.down(shared(gate, 1 / 2) * shared(up, 1 / 2))


@pytest.fixture(params=["in one block", "in blocks of two queries"])
def _in_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in blocks of two queries":
        monkeypatch.setattr(blocks, "BLOCK_ENTRIES", {"cpu": 2 * SAMPLES * HEADS * TOKENS})
        monkeypatch.setattr(blocks, "LEAST_ROWS", 1)


@pytest.mark.usefixtures("_in_blocks")
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("attend", [fused, written_out])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_gradient_is_the_one_of_the_paper(
    options: dict[str, Any], attend: Callable[..., Tensor], temperature: float
) -> None:
    model = with_random_weights(Decoder(partial(attend, **options)))

    def softmax(scores: Tensor) -> Tensor:
        return Softened.apply(scores, temperature)

    by_hand = Decoder(partial(written_out, softmax=softmax, **options), ByHand).double()
    by_hand.load_state_dict(model.state_dict())
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5).requires_grad_()
    assert_close(by_hand(x).detach(), model(x).detach(), relative=1e-12)

    (gradient,) = torch.autograd.grad(by_hand(x)[:, 3].sum(), x)
    found = GIM(model, temperature=temperature).attribute(x.detach(), 3)
    assert_close(found, (x * gradient).detach(), relative=1e-9)


def test_at_temperature_one_the_softmax_has_its_own_gradient() -> None:
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    for attend in (fused, written_out):
        model = with_random_weights(Decoder(partial(attend, is_causal=True)))

        def explained(rules: ForwardRules, model: nn.Module = model) -> Tensor:
            return extend.GradientMethod(model, rules).attribute(x, 3)

        own = explained(extend.joined(extend.LN, extend.UNIFORM))
        assert_close(GIM(model, temperature=1.0).attribute(x, 3), own, relative=1e-12)
        softened = extend.joined(at_temperature(1.0), extend.LN, extend.UNIFORM)
        assert_close(explained(softened), own, relative=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attend", [fused, written_out])
def test_half_precision(attend: Callable[..., Tensor], dtype: torch.dtype) -> None:
    model = with_random_weights(Decoder(partial(attend, is_causal=True))).to(dtype)
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5).to(dtype)
    found = GIM(model).attribute(x, 3)
    expected = GIM(model.double()).attribute(x.double(), 3)
    assert_close(found.double(), expected, relative=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_are_refused(temperature: float) -> None:
    with pytest.raises(InvalidInputError, match=f"positive number, got {temperature}"):
        GIM(timm_vit(), temperature=temperature)


def test_memory_of_the_backward_pass_is_linear_in_the_tokens() -> None:
    """There is no tensor of all pairs of tokens."""
    largest = 0

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    x = drawn(1, 1, 4096, 8).float()  # with heads: without, torch 2.9 multiplies matrices itself
    with Watched():
        GIM(lambda x: F.scaled_dot_product_attention(x, x, x).mean((1, 2))).attribute(x, 3)
    assert largest <= 2 * blocks.BLOCK_ENTRIES["cpu"]


def test_a_method_with_its_own_rule_for_softmax() -> None:
    """A method defined by a user may replace the rule for softmax."""
    seen = []

    def rule(operation: extend.Operation) -> Any:
        seen.append(operation.name)
        return operation.run(lambda operand: operand.tensor)

    model = with_random_weights(Decoder(written_out))
    explained = extend.GradientMethod(model, {extend.Kind.SOFTMAX: rule})
    explained.attribute(drawn(SAMPLES, TOKENS, WIDTH, seed=5), 3)
    assert seen == ["softmax"] * 2
