"""The token flow refuses operations and attention that no map of tokens describes."""

import pytest
import torch

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    GenericAttentionRelevance,
    RawAttention,
)
from captum_transformer.errors import UnsupportedOperationError
from tests.flow.models import HEADS, TOKENS, WIDTH, Model
from tests.flow.wirings import LinearAttention, WeightedTokens, Windows


def test_products_of_signals_without_a_softmax_are_refused():
    class Bilinear(Model):
        def read(self, x):
            return (x @ x.mT @ x)[:, 0]

    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"`matmul`.*attention must be a softmax"):
        GenericAttentionRelevance(Bilinear()).attribute(x, 0)


class FactorisedAttention(Model):
    """As in CoaT, where the softmax is over the tokens of the keys, without the queries."""

    def block(self, block, x):
        q, k, v = block.qkv(block.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = q @ (k.softmax(-2).mT @ v)
        return x + block.out(out.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("method", [GenericAttentionRelevance, AttentionRollout, RawAttention])
def test_factorised_attention_is_refused(method):
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"`matmul`.*mixes several signals"):
        method(FactorisedAttention()).attribute(x, 0)


@pytest.mark.filterwarnings("ignore:The model has attention whose weights are held constant")
@pytest.mark.parametrize("model", [LinearAttention, WeightedTokens])
def test_a_branch_that_mixes_tokens_without_a_known_map_is_refused(model):
    class AfterAttention(model):
        def block(self, block, x):
            return (Model if block is self.blocks[0] else model).block(self, block, x)

    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="contribution of its branch would be lost"):
        GenericAttentionRelevance(AfterAttention()).attribute(x, 0)


def test_a_layer_that_does_not_exist_is_refused():
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"layer=2 was asked for, but .* 2 layers of attention"):
        RawAttention(Model(), layer=2).attribute(x, 0)


def test_softmax_weights_outside_a_sum_are_refused():
    class Weighted(Model):
        def read(self, x):
            return self.head((x * x[..., :1].softmax(1))[:, 0])

    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="softmax weights multiply a signal"):
        GenericAttentionRelevance(Weighted()).attribute(x, 0)


def test_maps_of_windows_cannot_be_multiplied():
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"can't be multiplied.* runs over windows"):
        GenericAttentionRelevance(Windows()).relevance_maps(x, 0)


def test_heads_before_samples_are_refused_if_the_method_weights_heads():
    class HeadsSecond(Model):
        def block(self, block, x):
            q, k, v = (
                t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in block.qkv(x).chunk(3, -1)
            )
            weights = (q @ k.mT).softmax(-1)
            return x + block.out((weights @ v).transpose(1, 2).flatten(2)), weights

    class HeadsFirst(Model):
        def block(self, block, x):
            q, k, v = (torch.cat(t.chunk(HEADS, -1)) for t in block.qkv(x).chunk(3, -1))
            weights = (q @ k.mT).softmax(-1)
            return x + block.out(torch.cat((weights @ v).chunk(HEADS), -1)), weights

    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match="heads"):
        AttentionGradCam(HeadsFirst()).attribute(x, 0)
    torch.testing.assert_close(
        GenericAttentionRelevance(HeadsFirst()).attribute(x, 0),
        GenericAttentionRelevance(HeadsSecond()).attribute(x, 0),
    )


@pytest.mark.parametrize(
    ("output", "target"),
    [(lambda y: y.flatten(), None), (lambda y: y.mean(), None), (lambda y: y.T[..., None], (0, 0))],
)
def test_outputs_without_one_score_per_sample_are_refused(output, target):
    class Odd(Model):
        def read(self, x):
            return output(self.head(x[:, 0]))

    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"(4|8|1) scores, but there are 2 samples"):
        GenericAttentionRelevance(Odd()).attribute(x, target)
