"""Evidence of pooled tokens that bypasses attention, and evidence behind attention."""

from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    TransformerAttribution,
    extend,
)
from tests.attr.subjects import as_tuple, subject
from tests.flow.graphs import drawn, tokens
from tests.flow.models import TOKENS, WIDTH, LastToken, MaskedMean, MaskedProduct, MeanPooled, Model
from tests.flow.oracle import Oracle, expected
from tests.flow.programs import Attention

METHODS = [GenericAttentionRelevance, TransformerAttribution]


def together(passed, own, place):
    """What has passed attention, and as much evidence, at the tokens that those pooled are of."""
    if place is None or own.shape[1] == 1:
        return passed
    scale = passed.sum(1, keepdim=True) / own.clamp_min(0).sum(1, keepdim=True)
    return passed + scale * own @ place


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_random_graphs_read_by_a_mean(start):
    for seed in range(start, start + 20):
        program, target = drawn(seed), 1
        program.read = "mean"
        x = tokens(program)
        passed = expected(program, x, target, with_identity=False)
        weights = program.head.weight[target]
        said = program.last @ weights / program.last.shape[1]
        own = (said - said.mean(1, keepdim=True)).detach()
        place = Oracle(program, x)._held[-1].get(-1)
        for layer in program.layers:
            if isinstance(layer, Attention):
                layer.maps.clear()
        found = GenericAttentionRelevance(program).attribute_tokens(x, target)
        torch.testing.assert_close(
            found,
            together(passed, own, place),
            rtol=1e-8,
            atol=1e-11,
            msg=lambda m, p=program: f"{p.steps}: {m}",
        )


@pytest.mark.parametrize("kind", [MaskedMean, MaskedProduct])
@pytest.mark.parametrize("method", METHODS)
def test_tokens_that_are_left_out_of_a_mean_say_nothing(method, kind):
    model, x = kind(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    plain = method(model, pooled_evidence=False).attribute_tokens(x, 1)
    own = method(model).attribute_tokens(x, 1) - plain
    assert own[:, [0, 1, 2, 4]].all()
    assert own[:, [3, 5]].abs().amax() < 1e-12 * own.abs().amax()
    torch.testing.assert_close(own.sum(1), torch.zeros(2, dtype=x.dtype))
    torch.testing.assert_close(own.clamp_min(0).sum(1), plain.sum(1))


def at_one_place(x):
    return torch.zeros(len(x), 1, WIDTH, dtype=x.dtype), torch.zeros_like(x, dtype=torch.long)


def by_convolution(x):
    kernel = torch.full((WIDTH, 1, TOKENS), 1 / TOKENS, dtype=x.dtype)
    return F.conv1d(x.mT, kernel, groups=WIDTH)[..., 0]


def mean_without_nan(x):
    padded = F.pad(x, (0, 0, 0, 2), value=1.0)
    return padded.masked_fill(torch.arange(TOKENS + 2)[:, None] >= TOKENS, torch.nan).nanmean(1)


POOLINGS = {
    "mean": {
        "sum": lambda x: x.sum(1) / TOKENS,
        "pool": lambda x: F.adaptive_avg_pool1d(x.mT, 1)[..., 0],
        "grid, rows first": lambda x: x.unflatten(1, (2, 3)).mean(2).mean(1),
        "grid, columns first": lambda x: x.unflatten(1, (2, 3)).mean(1).mean(1),
        "halves": lambda x: (x[:, :3].mean(1) + x[:, 3:].mean(1)) / 2,
        "einsum": lambda x: torch.einsum("bnd->bd", x) / TOKENS,
        "product": lambda x: torch.full((1, TOKENS), 1 / TOKENS, dtype=x.dtype) @ x,
        "scatter": lambda x: at_one_place(x)[0].scatter_reduce(
            1, at_one_place(x)[1], x, "mean", include_self=False
        ),
        "scatter_add": lambda x: at_one_place(x)[0].scatter_add(1, at_one_place(x)[1], x) / TOKENS,
        "index_add": lambda x: (
            at_one_place(x)[0].index_add(1, torch.zeros(TOKENS).long(), x) / TOKENS
        ),
        "cumsum": lambda x: x.cumsum(1)[:, -1] / TOKENS,
        "convolution": by_convolution,
        "NaN padding, nanmean": mean_without_nan,
        "one layer's tokens, twice": lambda x: torch.stack([x, x]).mean(0).mean(1),
    },
    "maximum": {
        "max": lambda x: x.max(1).values,
        "pool": lambda x: F.adaptive_max_pool1d(x.mT, 1)[..., 0],
        "topk": lambda x: x.topk(1, 1).values[:, 0],
        "sort": lambda x: x.sort(1).values[:, -1],
        "kthvalue": lambda x: x.kthvalue(TOKENS, 1).values,
        "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
        "take_along_dim": lambda x: x.take_along_dim(x.argmax(1, keepdim=True), 1),
    },
}
PLAIN = {"mean": lambda x: x.mean(1), "maximum": lambda x: x.amax(1)}


class Pooled(Model):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def read(self, x):
        return self.head(self.pool(x).reshape(len(x), WIDTH))


@pytest.mark.parametrize(
    ("kind", "spelling"), [(kind, name) for kind in POOLINGS for name in POOLINGS[kind]]
)
def test_evidence_does_not_depend_on_how_tokens_are_pooled(kind, spelling):
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    found, expected, passed = (
        GenericAttentionRelevance(Pooled(pool), **options).attribute_tokens(x, 1)
        for pool, options in (
            (POOLINGS[kind][spelling], {}),
            (PLAIN[kind], {}),
            (PLAIN[kind], {"pooled_evidence": False}),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (expected - passed).abs().amax() > 0.1 * passed.abs().amax()


@pytest.mark.parametrize("method", METHODS)
def test_evidence_does_not_depend_on_what_lies_beside_the_samples(method):
    model, x = MeanPooled(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    expected = method(model).attribute_tokens(x, 1)

    def joined(x):
        return model(torch.cat([x, torch.zeros_like(x)]))[: len(x)]

    torch.testing.assert_close(method(joined).attribute_tokens(x, 1), expected)


class TokenBesideMean(Model):
    """Read from its first token, joined to the mean of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.join = nn.Linear(2 * WIDTH, 3, dtype=torch.float64)

    def read(self, x):
        return self.join(torch.cat([x[:, 0], x[:, 1:].mean(1)], 1))


@pytest.mark.parametrize("method", METHODS)
def test_evidence_weighs_as_much_as_the_part_that_is_pooled(method):
    model, x = TokenBesideMean(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    plain = method(model, pooled_evidence=False).attribute_tokens(x, 1)
    own = method(model).attribute_tokens(x, 1) - plain
    assert own[:, 0].abs().amax() < 1e-12
    torch.testing.assert_close(own.sum(1), torch.zeros(2, dtype=x.dtype))
    # Half of what is read is the first token.
    torch.testing.assert_close(own.clamp_min(0).sum(1), plain.sum(1) / 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "timm DeiT, distilled", "BERT", "GPT-2"])
def test_one_token_has_nothing_to_be_compared_with(name, method):
    maps = subject(name).attribute(method)
    plain = subject(name).attribute(partial(method, pooled_evidence=False))
    for one, other in zip(as_tuple(maps), as_tuple(plain), strict=True):
        assert torch.equal(one, other)
    model, x = LastToken(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    plain = method(model, pooled_evidence=False)
    assert method(model).attribute(x, 1).equal(plain.attribute(x, 1))


@pytest.mark.parametrize("method", METHODS)
def test_each_sample_is_weighed_by_itself(method):
    model, x = MeanPooled(), torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    x[1] *= 5
    explain = method(model)
    alone = torch.cat([explain.attribute(each[None], 1) for each in x])
    torch.testing.assert_close(explain.attribute(x, 1), alone)


class Joined(Model):
    """Reads a class token and the mean of the patches, in halves or as one mean over all."""

    def __init__(self, *, halves):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, WIDTH, dtype=torch.float64))
        self.halves = halves

    def forward(self, x, maps=None):
        return super().forward(torch.cat([self.token.expand(len(x), -1, -1), x], 1), maps)

    def read(self, x):
        return self.head((x[:, 0] + x[:, 1:].mean(1)) / 2 if self.halves else x.mean(1))


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_account_has_it(method, halves):
    """What a pooled class token says for the class reaches no input."""
    model, x = Joined(halves=halves), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    explain, plain = method(model), method(model, pooled_evidence=False)
    if method is TransformerAttribution:  # whose account is that of its maps' relevance
        torch.testing.assert_close(explain.account(x, 1).total, plain.account(x, 1).total)
        return
    found, before = explain.account(x, 1), plain.account(x, 1)
    torch.testing.assert_close(found.of("inputs"), explain.attribute(x, 1).sum((1, 2)))
    torch.testing.assert_close(found.total, before.total)
    torch.testing.assert_close(sum(part.amount for part in found.parts), found.total)
    said = found.of("joined constants") - before.of("joined constants")
    assert halves or said.abs().amin() > 1e-9
    torch.testing.assert_close(before.of("inputs") - found.of("inputs"), said)


class Towers(nn.Module):
    """Two texts that are compared, each read by a mean, or one of both read by a mean."""

    def __init__(self, *, together):
        super().__init__()
        self.towers = nn.ModuleList([MeanPooled(), MeanPooled()])
        self.together = together

    def forward(self, one, other):
        if self.together:
            return self.towers[0](torch.cat([one, other], 1))
        return (self.towers[0](one) * self.towers[1](other)).sum(1)


@pytest.mark.parametrize("together", [True, False])
def test_an_input_gets_what_it_gets_alone(together):
    method = GenericAttentionRelevance
    model = Towers(together=together)
    one, other = torch.randn(2, 3, WIDTH).double(), torch.randn(2, 4, WIDTH).double()
    target = 1 if together else None
    both = method(model).attribute((one, other), target)
    torch.testing.assert_close(method(model).attribute(one, target, other), both[0])
    turned = method(lambda other, one: model(one, other))
    torch.testing.assert_close(turned.attribute(other, target, one), both[1])
    assert all((found < 0).any() for found in both)


class Even(extend.MapMethod):
    class_specific = False

    def maps(self, explained, calls):
        return lambda call, rows: torch.ones_like(call.probabilities(rows))


@pytest.mark.parametrize(
    "method",
    [AttentionRollout, Even, partial(TransformerAttribution, gradient_weighting=False)],
    ids=["rollout", "own maps", "relevance alone"],
)
def test_maps_that_are_the_same_for_all_classes_have_none(method):
    model, x = MeanPooled(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    assert method(model).attribute_tokens(x, 1).amin() >= 0


def test_pixels_of_a_hierarchical_model_have_what_its_tokens_do():
    torch.manual_seed(0)
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=16,
        patch_size=2,
        num_classes=5,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
    )
    model, x = model.double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    plain, whole = (
        GenericAttentionRelevance(model, pooled_evidence=given).attribute(x, 1)
        for given in (False, True)
    )
    with torch.no_grad():
        said = (model.forward_features(x) @ model.head.fc.weight[1]) / 16
    own = said - said.mean((1, 2), keepdim=True)
    scale = plain.sum((1, 2, 3)) / own.clamp_min(0).sum((1, 2))
    # Each of the last 4 x 4 tokens is made of 4 x 4 pixels in three colours.
    spread = own.repeat_interleave(4, 1).repeat_interleave(4, 2) / 48
    expected = plain + (scale[:, None, None] * spread)[:, None]
    torch.testing.assert_close(whole, expected.expand_as(whole))
