"""GIM is the same however the attention of a model is written, and leaves other softmaxes alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import GIM, extend
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.gradient.temperature import at_temperature
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
from tests.attr.tiny_models import drawn, ids, images, timm_vit, with_random_weights


def test_scaled_weights_equal_scaled_values() -> None:
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


def test_a_mask_that_depends_on_the_input_has_its_gradient() -> None:
    """For example, a bias of positions that is computed from the tokens."""
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
    """As in XCiT, where the features of a token attend to each other."""
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


def test_weights_of_attention_may_be_scaled_and_mixed() -> None:
    """Weights may be scaled instead of the values, and heads may be mixed before or after."""
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
def test_a_gate_of_the_weights_is_not_attention(first: str) -> None:
    """A softmax over heads has its own gradient, like the same function in two steps."""

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
    own = extend.GradientMethod(model, extend.joined(extend.LN, extend.UNIFORM)).attribute(x, 3)
    assert_close(GIM(model, temperature=1.0).attribute(x, 3), own, relative=1e-12)
