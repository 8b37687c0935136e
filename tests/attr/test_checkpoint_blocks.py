"""With `checkpoint`, the forward pass keeps the inputs of blocks and runs each block again once."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cost.memory import peak_bytes
from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    TransformerAttribution,
)
from captum_transformer.calling import Arguments
from captum_transformer.trace import traced_forward
from captum_transformer.trace.recomputed import Block
from tests.attr.subjects import Method, assert_identical
from tests.attr.tiny_models import hf_vit, images, timm_vit


class Decoder(nn.Module):
    """Causal blocks with a norm first, and one score."""

    def __init__(self, depth: int, width: int = 16, *, use_fused: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 4 * width, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.use_fused = use_fused
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (x if self.use_fused else self.by_hand(x)) / 8
            x = block(x)
        scores: Tensor = self.head(x.mean(1))
        return scores

    @staticmethod
    def by_hand(x: Tensor) -> Tensor:
        """Attention whose map of all pairs of tokens is held for the backward pass."""
        return (x @ x.mT / 4).softmax(-1) @ x


LESS: dict[str, tuple[Method, float]] = {
    "LibraGrad": (LibraGrad, 0.35),
    "ConservativeLRP": (ConservativeLRP, 0.35),
    "ConservativeLRP, gamma": (partial(ConservativeLRP, gamma=0.1), 0.35),
    "AttnLRP": (AttnLRP, 0.35),
    "GIM": (GIM, 0.5),
    "GenericAttentionRelevance": (GenericAttentionRelevance, 0.4),
    "TransformerAttribution": (TransformerAttribution, 0.4),
    "AttentionRollout": (AttentionRollout, 0.4),
}


@pytest.mark.parametrize("use_fused", [True, False])
@pytest.mark.parametrize("name", LESS)
@pytest.mark.slow
def test_the_forward_pass_keeps_less(name: str, use_fused: bool) -> None:
    (make, share), x = LESS[name], torch.randn(2, 64, 16)
    model = Decoder(12, use_fused=use_fused).requires_grad_(requires_grad=False)

    def peak(**options: Any) -> int:
        return peak_bytes(lambda: make(model, **options).attribute(x, 1), x.device)

    peak(checkpoint=True)  # for allocations that are made once
    plain = peak()
    assert peak(checkpoint=True) < share * plain
    assert peak(checkpoint=4) < plain


# Slow, although they aren't: tools that count executed lines keep local variables of models alive.
@pytest.mark.slow
def test_memory_grows_by_the_input_of_each_block() -> None:
    width, tokens = 16, 256
    x = torch.randn(1, tokens, width)

    def peak(depth: int) -> int:
        model = Decoder(depth).requires_grad_(requires_grad=False)
        return peak_bytes(lambda: AttnLRP(model, checkpoint=True).attribute(x, 1), x.device)

    peak(2)
    grown = peak(20) - peak(10)
    assert 0.9 < grown / (10 * tokens * width * 4) < 1.5


def blocks(model: nn.Module, x: Tensor, checkpoint: int, **named: Any) -> list[Block]:
    with traced_forward(model, Arguments(x, None, named), checkpoint=checkpoint) as forward:
        found = forward._trace.blocks._blocks
        return [(list(block._inputs), len(block._steps)) for block in found]  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("model", [hf_vit(), hf_vit("eager"), timm_vit(depth=4)])
def test_a_block_reads_the_residual_stream_alone(model: nn.Module) -> None:
    for inputs, _ in blocks(model, images(), 1)[1:]:
        (value,) = inputs
        assert value.shape == (3, 7, 16)


def test_a_block_has_as_many_layers_as_wanted() -> None:
    model, x = timm_vit(depth=6), images()
    assert [len(blocks(model, x, layers)) for layers in (1, 2, 3, 4, 9)] == [6, 3, 2, 2, 1]


@pytest.mark.parametrize("make", [LibraGrad, GenericAttentionRelevance])
def test_writes_in_place_through_views_of_earlier_blocks(make: Any) -> None:
    model = Decoder(3)

    def run(x: Tensor) -> Tensor:
        x = x * 1
        first, rest = x[:, :2], x[:, 2:]
        for block in model.blocks:
            x = x + block(x)
            rest += block(rest.clone()).tanh()
            first[:, 0] *= 0.5
            x[..., :3] = x[..., 3:6].clone() * rest[:, :1, :3].clone()
            x.relu_()
        scores: Tensor = model.head((x + first.mean(1, keepdim=True)).mean(1))
        return scores + model.head(rest.mean(1))

    x = torch.randn(2, 5, 16)
    assert_identical(make(run, checkpoint=True).attribute(x, 1), make(run).attribute(x, 1))


def test_each_operation_runs_again_in_its_precision() -> None:
    model = Decoder(3)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = model.blocks[0](x)
            with torch.autocast("cpu", enabled=False):
                x = model.blocks[1](x.float())
            x = model.blocks[2](x)
        scores: Tensor = model.head(x.float().mean(1))
        return scores

    x = torch.randn(2, 5, 16)
    for make in (AttnLRP, GenericAttentionRelevance):
        assert_identical(make(run, checkpoint=True).attribute(x, 1), make(run).attribute(x, 1))


@pytest.mark.parametrize("make", [GenericAttentionRelevance, TransformerAttribution])
def test_maps_run_each_block_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient, the relevance and the maps are computed while the block is recomputed once."""
    ran: list[Block] = []
    run = Block._run

    def counted(block: Block, *, saving: bool) -> None:
        ran.append(block)
        run(block, saving=saving)

    monkeypatch.setattr(Block, "_run", counted)
    model = timm_vit(depth=6)
    make(model, checkpoint=True).attribute(images(), 3)
    assert len(ran) == len(set(ran)) == 6


@pytest.mark.parametrize("make", [GenericAttentionRelevance, TransformerAttribution])
@pytest.mark.parametrize("checkpoint", [1, 2])
def test_generated_text_and_skips_across_blocks(make: Any, checkpoint: int) -> None:
    """Later blocks read the embeddings, whose gradient is needed as well."""

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 16)
            self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(5))
            self.out = nn.Linear(16, 30)

        def forward(self, ids: Tensor) -> Tensor:
            x = first = self.table(ids)
            for layer in self.layers:
                q, k, v = layer(nn.functional.layer_norm(x, (16,)) + 0.5 * first).chunk(3, -1)
                attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + attended * torch.tanh(first) + 0.1 * first
            return self.out(x)

    torch.manual_seed(0)
    model = Skips().eval()
    prompt, text = torch.tensor([[3, 7, 9]]), torch.tensor([[3, 7, 9, 4, 5, 6]])
    for more in ({}, {"spans": [(0, 2)], "hops": 1, "include_generated": True}):
        plain, again = (
            make(model, checkpoint=c).attribute_generated(prompt, text, **more)
            for c in (False, checkpoint)
        )
        assert_identical(again, plain)
