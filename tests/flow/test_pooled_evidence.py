"""What pooled tokens say by themselves, beside what has passed attention."""

from functools import partial

import pytest
import timm
import torch

from captum_transformer import GenericAttentionRelevance, TransformerAttribution
from tests.attr.subjects import as_tuple, subject
from tests.flow.graphs import Attention, Oracle, drawn, expected, tokens
from tests.rules.test_flow import TOKENS, WIDTH, LastToken, MaskedMean, MaskedProduct, MeanPooled

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
        found = GenericAttentionRelevance(program, pooled_evidence=True).attribute_tokens(x, target)
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
    plain = method(model).attribute_tokens(x, 1)
    own = method(model, pooled_evidence=True).attribute_tokens(x, 1) - plain
    assert own[:, [0, 1, 2, 4]].all()
    assert own[:, [3, 5]].abs().amax() < 1e-12 * own.abs().amax()
    torch.testing.assert_close(own.sum(1), torch.zeros(2, dtype=x.dtype))
    torch.testing.assert_close(own.clamp_min(0).sum(1), plain.sum(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "timm DeiT, distilled", "BERT", "GPT-2"])
def test_one_token_has_nothing_to_be_compared_with(name, method):
    maps = subject(name).attribute(partial(method, pooled_evidence=True))
    plain = subject(name).attribute(method)
    for one, other in zip(as_tuple(maps), as_tuple(plain), strict=True):
        assert torch.equal(one, other)
    model, x = LastToken(), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    assert method(model, pooled_evidence=True).attribute(x, 1).equal(method(model).attribute(x, 1))


@pytest.mark.parametrize("method", METHODS)
def test_each_sample_is_weighed_by_itself(method):
    model, x = MeanPooled(), torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    x[1] *= 5
    explain = method(model, pooled_evidence=True)
    alone = torch.cat([explain.attribute(each[None], 1) for each in x])
    torch.testing.assert_close(explain.attribute(x, 1), alone)


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
