"""`flex_attention` has the map of the same attention written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import flex_attention as OPERATOR
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace import blocks, traced_forward
from captum_transformer.trace.attention import FlexAttention
from captum_transformer.trace.flex import flex_attend
from captum_transformer.trace.scoring import Scoring
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import drawn, with_random_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:return_lse is deprecated"),
]

SAMPLES, TOKENS, WIDTH, HEADS = 2, 6, 16, 4
Mod = Callable[..., Tensor]


class Attention(nn.Module):
    """Attention whose scores may be capped, biased and masked."""

    def __init__(
        self, cap: float | None = None, *, biased: bool = False, keys: int = HEADS, scale: float = 1
    ) -> None:
        super().__init__()
        width = WIDTH // HEADS
        self.project = nn.ModuleList(
            nn.Linear(WIDTH, heads * width) for heads in (HEADS, keys, keys)
        )
        self.bias = nn.Parameter(torch.zeros(HEADS, TOKENS, TOKENS)) if biased else None
        self.out = nn.Linear(WIDTH, WIDTH)
        self.cap, self.scale, self.groups = cap, scale, HEADS // keys

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for p in self.project)
        out = self.attend(q, k, v, mask)
        return self.out(out.transpose(1, 2).flatten(2))


class WrittenOut(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(self.groups, 1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * self.scale
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        if self.bias is not None:
            scores = scores + self.bias
        scores = scores.masked_fill(~mask[:, None], -math.inf)
        return scores.softmax(-1) @ v


class Flex(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if self.cap is not None:
                score = self.cap * torch.tanh(score / self.cap)
            return score if self.bias is None else score + self.bias[h][i, j]

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return mask[b, i, j]

        block_mask = create_block_mask(mask_mod, len(q), None, TOKENS, TOKENS, device=str(q.device))
        return flex_attention(
            q,
            k,
            v,
            score_mod=score_mod,
            block_mask=block_mask,
            scale=self.scale,
            enable_gqa=self.groups > 1,
        )


class Model(nn.Module):
    """Two layers of attention beside skips, and a mean over the tokens."""

    def __init__(self, attention: Callable[[], Attention]) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList(attention() for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x, mask)
        return self.head(x.mean(1))


def causal() -> Tensor:
    return torch.ones(SAMPLES, TOKENS, TOKENS, dtype=torch.bool).tril()


def window_and_padding() -> Tensor:
    place = torch.arange(TOKENS)
    near = (place[:, None] - place).abs() <= 2
    kept = place < torch.tensor([[TOKENS], [TOKENS - 2]])
    return near & kept[:, None] | torch.eye(TOKENS, dtype=torch.bool)


WAYS: dict[str, tuple[dict[str, Any], Callable[[], Tensor]]] = {
    "causal": ({}, causal),
    "window and padding, grouped heads": ({"keys": 2, "scale": 0.4}, window_and_padding),
    "soft cap": ({"cap": 1.5}, causal),
    "learned position bias": ({"biased": True}, window_and_padding),
    "soft cap and bias, one head of keys": ({"cap": 2.0, "biased": True, "keys": 1}, causal),
}


def pair(way: str) -> tuple[nn.Module, nn.Module, Tensor]:
    options, mask = WAYS[way]
    models = [Model(lambda kind=kind: kind(**options)).double() for kind in (WrittenOut, Flex)]
    with_random_weights(models[0])
    models[1].load_state_dict(models[0].state_dict())
    return models[0].eval(), models[1].eval(), mask()


def maps(model: nn.Module, method: str, mask: Tensor) -> Any:
    x = drawn(SAMPLES, TOKENS, 5)
    return METHODS[method](model).attribute(x, [1, 2], additional_forward_args=(mask,))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_as_written_out(way: str, method: str) -> None:
    written, flex, mask = pair(way)
    assert_close(maps(flex, method, mask), maps(written, method, mask), relative=1e-8)


@pytest.fixture
def _rows_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", {"cpu": 2 * SAMPLES * HEADS * TOKENS})
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)


@pytest.mark.usefixtures("_rows_by_two")
@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "full LRP", "AttnLRP", "GIM"])
def test_in_blocks_of_queries(method: str) -> None:
    written, flex, mask = pair("soft cap and bias, one head of keys")
    assert_close(maps(flex, method, mask), maps(written, method, mask), relative=1e-8)


def test_the_output_of_the_model_is_unchanged() -> None:
    """The output is the same with and without the trace, and tensors require gradients within."""
    _, flex, mask = pair("soft cap and bias, one head of keys")
    flex, x = flex.float(), drawn(SAMPLES, TOKENS, 5).float()
    with torch.no_grad():
        native = flex(x, mask)
    required = []
    flex.layers[0].register_forward_pre_hook(lambda _, args: required.append(args[0].requires_grad))

    with traced_forward(flex, Arguments((x,), (mask,), {})) as forward:
        assert torch.equal(forward.output, native)
        assert all(isinstance(call, FlexAttention) for call in forward.calls)
        assert len(forward.calls) == 2
    assert required == [True]
    with torch.no_grad():
        assert torch.equal(flex(x, mask), native)


@pytest.mark.usefixtures("_rows_by_two")
def test_outputs_layout_and_derivatives() -> None:
    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.tanh(score) + slopes[h] * (i - j)

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (h != 1)  # one head whose queries may attend to nothing

    slopes = drawn(HEADS)
    query = drawn(SAMPLES, TOKENS, HEADS, 3).transpose(1, 2)
    key, value = drawn(SAMPLES, 2, 8, 3, seed=1), drawn(SAMPLES, 2, 8, 5, seed=2)
    block_mask = create_block_mask(mask_mod, None, None, TOKENS, 8, device="cpu")
    native, sums = flex_attention(
        query, key, value, score_mod, block_mask, enable_gqa=True, return_lse=True
    )
    scoring = Scoring(score_mod, mask_mod)

    def attend(*qkv: Tensor) -> tuple[Tensor, ...]:
        return flex_attend(*qkv, 3**-0.5, scoring, [])

    out, logs, _ = attend(query, key, value)
    assert_close(out, native, relative=1e-14)
    assert out.stride() == native.stride()
    torch.testing.assert_close(logs * math.log(2), sums)
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv)[0], leaves, fast_mode=True)


def test_autocast() -> None:
    """Half precision wherever torch takes it, and no nearer to the model in full precision."""
    written, flex, mask = (x.float() if isinstance(x, nn.Module) else x for x in pair("soft cap"))
    x = drawn(SAMPLES, TOKENS, 5).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, native = written(x, mask), flex(x, mask)
    arguments = Arguments((x,), (mask,), {})
    with torch.autocast("cpu", torch.bfloat16), traced_forward(flex, arguments) as forward:
        assert forward.output.dtype == native.dtype
        if torch._C.DispatchKey.AutocastCPU in OPERATOR.py_kernels:
            assert torch.equal(forward.output, native)
        else:  # old versions of PyTorch round the scores as well where nothing is compiled
            assert_close(forward.output, native, relative=0.01)
    assert_close(native, expected, relative=0.02)


class Refused(Model):
    """Attention that reads what the inputs reach beside queries, keys and values."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__(Flex)
        for layer in self.layers:
            layer.attend = attend
        with_random_weights(self.double())


def by_captured_signal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    lengths = k.norm(dim=-1)
    return flex_attention(q, k, v, lambda s, b, h, i, j: s - lengths[b, h, j])


def by_log_sum_exp(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    out, sums = flex_attention(q, k, v, return_lse=True)
    return out * torch.sigmoid(sums)[..., None]


def by_blocks_alone(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    first = torch.zeros(1, 1, 1, 2, dtype=torch.int32)
    one = torch.ones(1, 1, 1, dtype=torch.int32)
    block_mask = BlockMask.from_kv_blocks(one, first, BLOCK_SIZE=(8, 4), seq_lengths=(6, 6))
    return flex_attention(q, k, v, block_mask=block_mask)


def by_overwritten_bias(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    bias = torch.zeros(TOKENS, dtype=q.dtype)
    out = flex_attention(q, k, v, lambda s, b, h, i, j: s - bias[j])
    bias.fill_(1.0)
    return out


REFUSED = {
    by_captured_signal: "score_mod reads a tensor .* depends on the inputs",
    by_log_sum_exp: "computes with the log-sum-exp",
    by_blocks_alone: "leaves blocks out",
    by_overwritten_bias: "modified after",
}


@pytest.mark.parametrize("attend", REFUSED)
@pytest.mark.parametrize(
    "method", ["GenericAttentionRelevance", "AttentionRollout", "full LRP", "AttnLRP"]
)
def test_refusals(method: str, attend: Callable[..., Tensor]) -> None:
    with pytest.raises(UnsupportedOperationError, match=REFUSED[attend]):
        maps(Refused(attend), method, causal())


def test_learned_queries() -> None:
    """As in DETR, learned queries attend to each other before they attend to the inputs."""

    class Reads(nn.Module):
        def __init__(self, *, flex: bool) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.zeros(1, HEADS, 3, 4))
            self.embed = nn.Linear(5, WIDTH)
            self.attend = flex_attention if flex else nn.functional.scaled_dot_product_attention

        def forward(self, x: Tensor) -> Tensor:
            q = self.queries.expand(len(x), -1, -1, -1)
            q = q + self.attend(q, q, q)
            x = self.embed(x).unflatten(-1, (HEADS, 4)).transpose(1, 2)
            return (q + self.attend(q, x, x)).sum(-2).flatten(1)

    models = [Reads(flex=flex).double() for flex in (False, True)]
    with_random_weights(models[0])
    models[1].load_state_dict(models[0].state_dict())
    x = drawn(SAMPLES, TOKENS, 5)
    for method in METHODS:
        expected, found = (METHODS[method](model).attribute(x, 1) for model in models)
        assert_close(found, expected, relative=1e-8)


def test_held_probabilities_need_no_log_sum_exp() -> None:
    """Attention sinks are computed from it: if probabilities are constant, it is as well."""

    def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        weights = torch.cat([scores, torch.zeros_like(scores[..., :1])], -1).softmax(-1)
        return weights[..., :-1] @ v

    assert_close(
        maps(Refused(by_log_sum_exp), "ConservativeLRP", causal()),
        maps(Refused(written_out), "ConservativeLRP", causal()),
    )
