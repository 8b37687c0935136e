"""GIM: the softmax of attention has its gradient at a temperature, however attention is written."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import GIM, AttnLRP, extend
from captum_transformer.errors import InvalidInputError, UnsupportedOperationError
from captum_transformer.rules.gradient.tables import ForwardRules
from captum_transformer.rules.gradient.temperature import at_temperature
from captum_transformer.trace import blocks
from tests.attr.subjects import assert_close, drawn, ids, images, timm_vit, with_random_weights

SAMPLES, TOKENS, WIDTH, HEADS = 2, 7, 16, 4
FUTURE = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
# The last query has no key, and the first key has no query.
EMPTY = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
EMPTY[-1] = EMPTY[:, 0] = False
ADDED = drawn(HEADS, TOKENS, TOKENS, seed=9).masked_fill(FUTURE, -torch.inf)


def split(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)


class Block(nn.Module):
    """A block of a decoder: grouped attention, a gated MLP and norms."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        key, value = (split(t) for t in self.kv(y).chunk(2, -1))
        x = x + self.attend(split(self.q(y)), key, value).transpose(1, 2).flatten(2)
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    def __init__(self, attend: Callable[..., Tensor], block: type[Block] = Block) -> None:
        super().__init__()
        self.blocks = nn.Sequential(block(attend), block(attend))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


def fused(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softmax: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1),
) -> Tensor:
    key, value = (t.repeat_interleave(2, 1) for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = ~FUTURE
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=scores.dtype).masked_fill(
            ~attn_mask, -torch.inf
        )
    scores = scores if attn_mask is None else scores + attn_mask
    return softmax(scores).nan_to_num(0.0) @ value


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.9},
    "boolean mask with empty rows": {"attn_mask": EMPTY},
    "added mask": {"attn_mask": ADDED},
}


class Softened(torch.autograd.Function):
    """The rule as the paper has it: the Jacobian of the softmax at a temperature."""

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
    """The block with the gradients that GIM is to have, for autograd."""

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
def test_the_rules_are_the_papers(
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


def test_weights_that_are_scaled_attend_as_well() -> None:
    def scaled_weights(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (t.repeat_interleave(2, 1) for t in (key, value))
        return (query @ key.mT).softmax(-1).mul(0.5) @ value

    def scaled_values(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (t.repeat_interleave(2, 1) for t in (key, value))
        return (query @ key.mT).softmax(-1) @ value.mul(0.5)

    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    first, second = (
        GIM(with_random_weights(Decoder(attend))).attribute(x, 3)
        for attend in (scaled_weights, scaled_values)
    )
    assert_close(first, second, relative=1e-9)


def test_at_one_the_softmax_has_its_own_gradient() -> None:
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    for attend in (fused, written_out):
        model = with_random_weights(Decoder(partial(attend, is_causal=True)))

        def explained(rules: ForwardRules, model: nn.Module = model) -> Tensor:
            return extend.GradientMethod(model, rules).attribute(x, 3)

        own = explained(extend.joined(extend.LN, extend.UNIFORM))
        assert_close(GIM(model, temperature=1.0).attribute(x, 3), own, relative=1e-12)
        softened = extend.joined(at_temperature(1.0), extend.LN, extend.UNIFORM)
        assert_close(explained(softened), own, relative=1e-12)


def test_a_mask_that_is_a_signal_has_its_gradient() -> None:
    """Such as a bias of positions that follows from the tokens."""
    project = with_random_weights(nn.Linear(WIDTH, HEADS * TOKENS))
    x, query = drawn(SAMPLES, TOKENS, WIDTH, seed=5), drawn(SAMPLES, HEADS, TOKENS, 4)

    def model(x: Tensor, attend: Callable[..., Tensor], per_query: bool) -> Tensor:
        tokens = x if per_query else x[:, :1]
        mask = project(tokens).unflatten(-1, (HEADS, TOKENS)).transpose(1, 2)
        values = split(x[..., : WIDTH // 2])
        return attend(query, values, values, attn_mask=mask).flatten(1)

    for per_query in (False, True):
        found, expected = (
            GIM(partial(model, attend=attend, per_query=per_query)).attribute(x, 3)
            for attend in (fused, written_out)
        )
        assert_close(found, expected, relative=1e-12)


SHARED: dict[str, tuple[int, int]] = {"query": (1, HEADS), "scores": (1, 1), "keys": (HEADS, 1)}


@pytest.mark.parametrize("shapes", SHARED.values(), ids=SHARED)
def test_queries_or_keys_that_heads_share(shapes: tuple[int, int]) -> None:
    """Heads are broadcast, as in any product."""
    project = with_random_weights(nn.ModuleList(nn.Linear(WIDTH, 4 * n) for n in (*shapes, HEADS)))

    def model(x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        query, key, value = (split(part(x)) for part in project)
        return attend(query, key, value).transpose(1, 2).flatten(1)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT / 2).softmax(-1) @ value

    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    ways = (F.scaled_dot_product_attention, plain)
    found = [GIM(partial(model, attend=attend)).attribute(x, 3) for attend in ways]
    assert_close(*found, relative=1e-12)


def gpt2(attention: str) -> Any:
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=12, n_embd=16, n_layer=2, n_head=2, attn_implementation=attention
    )
    return with_random_weights(transformers.GPT2LMHeadModel(config))


def llama(attention: str) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.LlamaForCausalLM(config))


def gemma2(attention: str) -> Any:
    """With soft caps on the scores of attention, too."""
    config = transformers.Gemma2Config(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=32,
        max_position_embeddings=16,
        sliding_window=4,
        query_pre_attn_scalar=4,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=3.0,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.Gemma2ForCausalLM(config))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("make", "other"), [(gpt2, "sdpa"), (llama, "sdpa"), (gemma2, "flex_attention")]
)
def test_eager_equals_fused_on_language_models(make: Callable[[str], Any], other: str) -> None:
    target = [(6, word) for word in (1, 4, 0)]
    eager, fused = (GIM(make(attention)).attribute(ids(), target) for attention in ("eager", other))
    assert (eager != 0).all()
    assert_close(fused, eager, 1e-5)  # probabilities and norms in float32 in either case
    own = GIM(make("eager"), temperature=1.0).attribute(ids(), target)
    assert (own - eager).abs().max() > 0.01 * eager.abs().max()


def test_eager_equals_fused_on_a_model_of_timm() -> None:
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    eager = timm_vit()
    timm.layers.set_fused_attn(before)
    assert_close(*(GIM(m).attribute(images(), [1, 4, 0]) for m in (eager, timm_vit())), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attend", [fused, written_out])
def test_half_precision(attend: Callable[..., Tensor], dtype: torch.dtype) -> None:
    model = with_random_weights(Decoder(partial(attend, is_causal=True))).to(dtype)
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5).to(dtype)
    found = GIM(model).attribute(x, 3)
    expected = GIM(model.double()).attribute(x.double(), 3)
    assert_close(found.double(), expected, relative=16 * torch.finfo(dtype).eps)


class Routed(nn.Module):
    """Attention, then experts that are weighted by a softmax over their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.router = Block(fused), nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        weights = self.router(y).softmax(-1)
        y = sum(weights[..., i : i + 1] * expert(y) for i, expert in enumerate(self.experts))
        return self.head(y.mean(1)).softmax(-1)


def test_the_softmax_of_a_router_or_a_classifier_has_its_own_gradient() -> None:
    model, x = with_random_weights(Routed()), drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    rules = extend.joined(
        {extend.Kind.ATTENTION: at_temperature(2.0)[extend.Kind.ATTENTION]},
        extend.LN,
        extend.UNIFORM,
    )
    expected = extend.GradientMethod(model, rules).attribute(x, 3)
    assert_close(GIM(model).attribute(x, 3), expected, relative=1e-12)


def test_attention_among_channels_is_attention() -> None:
    """As in XCiT, where the weights are of a token's own features."""
    project = with_random_weights(nn.Linear(WIDTH, 3 * WIDTH))

    def model(x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        query, key, value = (split(t).mT for t in project(x).chunk(3, -1))
        return attend(query, key[:, ::2], value[:, ::2]).mT.transpose(1, 2).flatten(2).mean(1)

    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    found, expected = (GIM(partial(model, attend=a)).attribute(x, 3) for a in (written_out, fused))
    assert_close(found, expected, relative=1e-12)


def test_activations_written_in_python_keep_their_gradient() -> None:
    def scores(x: Tensor, silu: Callable[[Tensor], Tensor]) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x)
        return (silu(x) * x.flip(-1)).mean(1)

    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    expected = GIM(partial(scores, silu=F.silu)).attribute(x, 3)
    for silu in (lambda x: x * x.sigmoid(), lambda x: x / (1 + (-x).exp())):
        assert_close(GIM(partial(scores, silu=silu)).attribute(x, 3), expected, relative=1e-12)


def test_weights_are_attentions_behind_what_scales_and_mixes_them() -> None:
    """A constant factor of the weights is one of what they weight, and mixed heads are a sum."""
    half, mixed = torch.full((HEADS, 1, 1), 0.5), drawn(HEADS, HEADS, seed=3)
    Attend = Callable[[Tensor, Tensor], Tensor]

    def decoder(attend: Attend) -> Decoder:
        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            key, value = (t.repeat_interleave(2, 1) for t in (key, value))
            return attend((query @ key.mT).softmax(-1), value)

        return with_random_weights(Decoder(run))

    pairs: list[tuple[Attend, Attend]] = [
        (lambda weights, value: (weights * half) @ value, lambda w, value: w @ (value * half)),
        (
            lambda weights, value: torch.einsum("gh,bhqk->bgqk", mixed, weights) @ value,
            lambda weights, value: torch.einsum(
                "gh,bhgqd->bgqd", mixed, weights[:, :, None] @ value[:, None]
            ),
        ),
    ]
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    for pair in pairs:
        found, expected = (GIM(decoder(attend)).attribute(x, 3) for attend in pair)
        assert_close(found, expected, relative=1e-12)


@pytest.mark.parametrize("first", ["weights", "gate"])
def test_a_gate_of_the_weights_does_not_attend(first: str) -> None:
    """A softmax over heads has its own gradient, as the same function in two steps."""

    def decoder(gate: Callable[[Tensor], Tensor]) -> Decoder:
        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            key, value = (t.repeat_interleave(2, 1) for t in (key, value))
            factors = (query @ key.mT).softmax(-1), gate(query.mean((2, 3), keepdim=True))
            one, other = factors if first == "weights" else factors[::-1]
            return (one * other) @ value

        return with_random_weights(Decoder(run))

    gates = (lambda scores: scores.softmax(1), lambda scores: scores.log_softmax(1).exp())
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    found, expected = (GIM(decoder(gate)).attribute(x, 3) for gate in gates)
    assert_close(found, expected, relative=1e-12)


BY_HAND = {
    "exponentials": lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
    "logarithm": lambda z: z.log_softmax(-1).exp(),
    "masked afterwards": lambda z: (
        z.softmax(-1) * ~FUTURE / (z.softmax(-1) * ~FUTURE).sum(-1, True)
    ),
}


@pytest.mark.parametrize("softmax", BY_HAND.values(), ids=BY_HAND)
def test_attention_whose_softmax_is_written_by_hand_is_refused(
    softmax: Callable[[Tensor], Tensor],
) -> None:
    model = with_random_weights(Decoder(partial(written_out, softmax=softmax)))
    x = drawn(SAMPLES, TOKENS, WIDTH, seed=5)
    with pytest.raises(UnsupportedOperationError, match=r"matmul.*Call `torch\.softmax`"):
        GIM(model).attribute(x, 3)
    assert GIM(model, temperature=1.0).attribute(x, 3).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_are_none(temperature: float) -> None:
    with pytest.raises(InvalidInputError, match=f"positive number, got {temperature}"):
        GIM(timm_vit(), temperature=temperature)


def test_memory_of_the_backward_pass_is_linear_in_the_tokens() -> None:
    """No tensor of all pairs of tokens is made."""
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


def test_it_is_no_other_method() -> None:
    model = timm_vit()
    explained = [make(model).attribute(images(), 1) for make in (GIM, AttnLRP)]
    assert (explained[0] - explained[1]).abs().max() > 0.1 * explained[1].abs().max()


def test_a_table_with_a_rule_for_softmax_is_followed() -> None:
    """A method of one's own may have a rule for a kind that every method has one for."""
    seen = []

    def rule(operation: extend.Operation) -> Any:
        seen.append(operation.name)
        return operation.run(lambda operand: operand.tensor)

    model = with_random_weights(Decoder(written_out))
    explained = extend.GradientMethod(model, {extend.Kind.SOFTMAX: rule})
    explained.attribute(drawn(SAMPLES, TOKENS, WIDTH, seed=5), 3)
    assert seen == ["softmax"] * 2
