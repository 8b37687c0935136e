"""Attention among the channels of a token (XCiT, DaViT), and among tokens."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import NoAttentionError
from tests.flow.models import HEADS, TOKENS, WIDTH, Model
from tests.flow.wirings import ChannelAttention

WITH_MAPS = {
    "TransformerAttribution": TransformerAttribution,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "AttentionRollout": AttentionRollout,
    "RawAttention": RawAttention,
    "AttentionGradCam": AttentionGradCam,
    "PartialLRP": PartialLRP,
}
WITHOUT_MAPS = {
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
}


def among_channels(block, x):
    """What attention among channels makes of each token."""
    q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 4, 1)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1)
    return block.out((weights @ v).permute(0, 3, 1, 2).flatten(2))


class Mixed(Model):
    """As in DaViT: each block attends among channels first, then among tokens."""

    def channels(self, block, x):
        return x + among_channels(block, x)

    def block(self, block, x):
        return super().block(block, self.channels(block, x))


class WithoutSkip(Mixed):
    def channels(self, block, x):
        return among_channels(block, x)


def embeddings(samples=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, TOKENS, WIDTH, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("method", WITH_MAPS.values(), ids=WITH_MAPS)
def test_one_warning_says_what_the_maps_leave_out(method):
    for attribute in ("attribute", "attribute_tokens", "attribute_targets"):
        target = [0, 1] if attribute == "attribute_targets" else 0
        with pytest.warns(
            UserWarning, match="2 of 4 .* channels.*attributed to that token"
        ) as heard:
            getattr(method(Mixed()), attribute)(embeddings(), target)
        assert len(heard) == 1


@pytest.mark.parametrize("method", WITHOUT_MAPS.values(), ids=WITHOUT_MAPS)
def test_methods_without_maps_do_not_warn(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(Mixed()).attribute(embeddings(), 0)


@pytest.mark.filterwarnings("ignore:.*among channels")
@pytest.mark.parametrize("model", [Mixed, WithoutSkip])
def test_attention_among_channels_leaves_the_maps_of_other_layers(model):
    model, x, maps = model(), embeddings(), []
    model(x, maps)
    first, second = ((torch.eye(TOKENS, dtype=x.dtype) + a.mean(1)) / 2 for a in maps)
    found = AttentionRollout(model, with_identity=True).attribute_tokens(x)
    torch.testing.assert_close(found, (second @ first)[:, 0])


def test_with_held_weights_a_token_depends_on_itself_alone():
    x = embeddings(1)
    relevance = ConservativeLRP(lambda x: among_channels(Mixed().blocks[0], x)).attribute(x, (2, 3))
    assert relevance[0, 2].any()
    assert not relevance[0, [0, 1, 3, 4, 5]].any()


def test_attention_among_channels_alone_is_an_error_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            NoAttentionError,
            match=r"among channels, not among tokens.*ConservativeLRP, AttnLRP, or",
        ):
            GenericAttentionRelevance(ChannelAttention()).attribute(embeddings(), 0)
