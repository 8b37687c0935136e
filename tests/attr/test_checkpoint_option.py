"""``checkpoint=True`` and ``checkpoint=2``: the same to the last bit, in less memory."""

from collections.abc import Callable, Mapping
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
    BiLRP,
    ConservativeLRP,
    FullGradPlus,
    GenericAttentionRelevance,
    LayerRelevance,
    LeGrad,
    LibraGrad,
    RelevancePatching,
    TransformerAttribution,
    extend,
)
from captum_transformer.calling import Arguments
from captum_transformer.errors import InvalidInputError
from captum_transformer.trace import traced_forward
from captum_transformer.trace.recomputed import Block
from tests.attr import kinds_of_attention
from tests.attr.subjects import METHODS, SUBJECTS, Method, as_tuple, attributed, subject
from tests.attr.tiny_models import bert, hf_vit, ids, images, timm_vit


def same(found: Any, expected: Any) -> None:
    """Not one bit is another: the same kernels run on the same numbers."""
    assert len(as_tuple(found)) == len(as_tuple(expected))
    for one, other in zip(as_tuple(found), as_tuple(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_method(name: str, method: str) -> None:
    found = subject(name).attribute(partial(METHODS[method], checkpoint=True))
    same(found, attributed(name, method))


@pytest.mark.parametrize("method", ["AttnLRP", "GenericAttentionRelevance", "full LRP"])
@pytest.mark.parametrize("name", kinds_of_attention.KINDS)
def test_every_kind_of_attention(name: str, method: str) -> None:
    given, again = kinds_of_attention.subject(name), partial(METHODS[method], checkpoint=True)
    if name == "ViLT":
        maps = []
        for each in (METHODS[method], again):
            torch.manual_seed(0)  # it shuffles its patches
            maps.append(given.attribute(each))
        same(*maps)
    else:
        same(given.attribute(again), kinds_of_attention.attributed(name, method))


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

    peak(checkpoint=True)  # what is allocated once
    plain = peak()
    assert peak(checkpoint=True) < share * plain
    assert peak(checkpoint=4) < plain


def test_memory_grows_by_what_each_block_reads() -> None:
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


@pytest.mark.parametrize("model", [hf_vit(), hf_vit("eager"), timm_vit(depth=4)])
def test_a_block_reads_the_residual_stream_alone(model: nn.Module) -> None:
    for inputs, _ in blocks(model, images(), 1)[1:]:
        (value,) = inputs
        assert value.shape == (3, 7, 16)


def test_a_block_has_as_many_layers_as_wanted() -> None:
    model, x = timm_vit(depth=6), images()
    assert [len(blocks(model, x, layers)) for layers in (1, 2, 3, 4, 9)] == [6, 3, 2, 2, 1]


def test_what_is_inside_a_model() -> None:
    model, x = timm_vit(depth=3), images()
    layers = ["patch_embed", "blocks.1", "blocks.1.mlp.act", ("blocks.2", 0)]
    for make in (AttnLRP, LibraGrad, partial(TransformerAttribution, propagate_to_input=True)):
        plain, again = make(model), make(model, checkpoint=True)
        same(
            tuple(again.attribute_layers(x, layers, 1)), tuple(plain.attribute_layers(x, layers, 1))
        )
        same(tuple(again.attribute_heads(x, 1)), tuple(plain.attribute_heads(x, 1)))
    for make in (GenericAttentionRelevance, AttentionRollout):
        plain, again = make(model), make(model, checkpoint=True)
        same(tuple(again.attribute_heads(x, 1)), tuple(plain.attribute_heads(x, 1)))
        same(
            LayerRelevance(again, "blocks.0").attribute(x, 1),
            LayerRelevance(plain, "blocks.0").attribute(x, 1),
        )


def test_several_targets_tokens_and_few_samples_at_a_time() -> None:
    model, x = bert(), ids()
    for make in (AttnLRP, GenericAttentionRelevance, TransformerAttribution, GIM):
        plain, again = make(model), make(model, checkpoint=1)
        same(tuple(again.attribute_targets(x, [1, 4])), tuple(plain.attribute_targets(x, [1, 4])))
        same(again.attribute_tokens(x, 1), plain.attribute_tokens(x, 1))
        same(
            again.attribute(x, 1, internal_batch_size=2),
            plain.attribute(x, 1, internal_batch_size=2),
        )


def test_accounts_and_positions() -> None:
    model, x = bert(), ids()
    for make in (AttnLRP, ConservativeLRP, GenericAttentionRelevance, TransformerAttribution):
        accounts = [make(model, checkpoint=again).account(x, 1) for again in (False, True)]
        for one, other in zip(*(account.parts for account in accounts), strict=True):
            assert (one.taker, one.source) == (other.taker, other.source)
            same(one.amount, other.amount)
    maps = [
        AttnLRP(model, positions="separate", checkpoint=again).attribute_positions(x, 1)
        for again in (False, True)
    ]
    same(*maps)
    maps = [
        AttnLRP(model, positions="add", checkpoint=again).attribute(x, 1) for again in (False, True)
    ]
    same(*maps)


def test_generated_tokens() -> None:
    given = kinds_of_attention.subject("Llama")
    prompt = given.inputs["input_ids"][:, :4]
    for make in (AttnLRP, GenericAttentionRelevance):
        maps = [
            make(given.model, checkpoint=again).attribute_generated(
                {"input_ids": prompt}, given.inputs["input_ids"]
            )
            for again in (False, True)
        ]
        same(*maps)


MADE: Mapping[str, Callable[..., Any]] = {
    "FullGradPlus": lambda model, **o: FullGradPlus(model, list(model.blocks), **o),
    "LeGrad": LeGrad,
    "GradientMethod": lambda model, **o: extend.GradientMethod(model, extend.LN, **o),
    "RelevanceMethod": lambda model, **o: extend.RelevanceMethod(
        model, {extend.Kind.PRODUCT: extend.z_rule}, **o
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_methods_that_are_made_in_another_way(name: str) -> None:
    model = timm_vit(depth=3)
    maps = [MADE[name](model, checkpoint=again).attribute(images(), 1) for again in (False, True)]
    same(*maps)


def test_methods_of_two_inputs() -> None:
    model, x = timm_vit(depth=3), images()
    for call in ("attribute", "attribute_heads"):
        layers = (["blocks.0", "blocks.1.attn"],) if call == "attribute" else ()
        found = [
            getattr(RelevancePatching(model, checkpoint=again), call)(x, x.flip(0), *layers, 1)
            for again in (False, True)
        ]
        same(*map(tuple, found))
    pairs = [
        BiLRP(
            lambda x: model.forward_features(x).mean(1),
            method=partial(ConservativeLRP, checkpoint=again),
        ).attribute(x[:1], x[1:2])
        for again in (False, True)
    ]
    same(*pairs)


@pytest.mark.parametrize("checkpoint", [-1, 0.5, "yes", None])
def test_a_number_that_is_none_of_layers_is_refused(checkpoint: Any) -> None:
    for make in (AttnLRP, RelevancePatching):
        with pytest.raises(
            InvalidInputError, match=r"True, False, or how many .*got " + repr(checkpoint)
        ):
            make(timm_vit(), checkpoint=checkpoint)


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
    same(make(run, checkpoint=True).attribute(x, 1), make(run).attribute(x, 1))


def test_precision_is_that_in_which_each_operation_ran() -> None:
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
        same(make(run, checkpoint=True).attribute(x, 1), make(run).attribute(x, 1))


@pytest.mark.parametrize("make", [GenericAttentionRelevance, TransformerAttribution])
def test_maps_take_each_block_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient, the relevance and the maps are made while the block is there."""
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
    """Gradients at the embeddings are asked for as well, and what later blocks read of earlier."""

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
        same(again, plain)
