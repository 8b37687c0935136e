"""Powers by logarithms, norms by terms, activations by a softmax: the plain form, or refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import AttnLRP
from captum_transformer.errors import UnsupportedOperationError
from tests.rules.test_same_function import BEFORE, PASSES, Function, V, X
from tests.rules.test_written_by_hand import WHY
from tests.rules.written_forms import EPS, LOG2E, inverse, mean


def squares(x: Tensor) -> Tensor:
    return mean(x.pow(2)) + EPS


def variance(x: Tensor) -> Tensor:
    return x.var(-1, keepdim=True, correction=0) + EPS


def with_zero(x: Tensor) -> Tensor:
    return torch.stack([x, torch.zeros_like(x)], -1)


def nothing(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


# The first of each group is the plain form.
GROUPS: dict[str, dict[str, Function]] = {
    "rms norm": {
        "fused": lambda x: F.rms_norm(x, (6,), None, EPS),
        "of a logarithm": lambda x: x * torch.exp(-0.5 * torch.log(squares(x))),
        "step by step": lambda x: x * squares(x).log().mul(-0.5).exp(),
        "quotient": lambda x: x / torch.exp(0.5 * squares(x).log()),
        "base two": lambda x: x * torch.exp2(-0.5 * torch.log2(squares(x))),
        "of a root": lambda x: x * (-squares(x).sqrt().log()).exp(),
        "power of e": lambda x: x * math.e ** (-0.5 * squares(x).log()),
        "reciprocal": lambda x: x * (1 / torch.exp(0.5 * squares(x).log())),
        "scaled": lambda x: x * torch.exp(1 - 0.5 * squares(x).log()) / math.e,
        "twice": lambda x: x * (r := torch.exp(-0.25 * squares(x).log())) * r,
    },
    "layer norm": {
        "fused": lambda x: F.layer_norm(x, (6,), None, None, EPS),
        "of a logarithm": lambda x: (x - mean(x)) * torch.exp(-0.5 * variance(x).log()),
        "term by term": lambda x: x * (r := inverse(x)) - mean(x) * r,
        "each by its own": lambda x: x * inverse(x) - mean(x) * inverse(x),
        "added": lambda x: x * (r := inverse(x)) + -mean(x) * r,
        "quotients": lambda x: x / variance(x).sqrt() - mean(x) / variance(x).sqrt(),
        "scaled": lambda x: x * inverse(x) - 2 * (mean(x) * inverse(x) * 0.5),
        "mean of quotients": lambda x: (y := x * inverse(x)) - mean(y),
    },
    "sigmoid": {
        "fused": torch.sigmoid,
        "softmax": lambda x: with_zero(x).softmax(-1)[..., 0],
        "softmax in front": lambda x: torch.stack([nothing(x), x]).softmax(0)[1],
        "joined": lambda x: torch.cat([x[..., None], nothing(x)[..., None]], -1).softmax(-1)[
            ..., 0
        ],
        "padded": lambda x: F.pad(x.unsqueeze(-1), (0, 1)).softmax(-1)[..., 0],
        "log softmax": lambda x: with_zero(x).log_softmax(-1)[..., 0].exp(),
        "logaddexp": lambda x: (x - torch.logaddexp(x, nothing(x))).exp(),
        "logarithm": lambda x: torch.exp(-torch.log(1 + torch.exp(-x))),
    },
    "softplus": {
        "fused": F.softplus,
        "logaddexp": lambda x: torch.logaddexp(x, nothing(x)),
        "turned around": lambda x: torch.logaddexp(nothing(x), x),
        "base two": lambda x: torch.logaddexp2(x * LOG2E, nothing(x)) / LOG2E,
        "log softmax": lambda x: -with_zero(-x).log_softmax(-1)[..., 0],
    },
    "silu": {
        "fused": F.silu,
        "logarithm": lambda x: x * torch.exp(-torch.log(1 + torch.exp(-x))),
        "softplus": lambda x: x / torch.exp(F.softplus(-x)),
    },
    "sigmoid gate": {
        "fused": lambda x: (x @ V) * x.sigmoid(),
        "logarithm": lambda x: (x @ V) * torch.exp(-torch.log(1 + torch.exp(-x))),
    },
    "mish": {
        "fused": F.mish,
        "logaddexp": lambda x: x * torch.tanh(torch.logaddexp(x, nothing(x))),
    },
}
REFUSED: dict[tuple[str, str], str] = {
    ("AttnLRP", "sigmoid"): "softmax|softmax in front|joined|padded|log softmax",
    ("AttnLRP", "softplus"): "log softmax",
}


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize(("group", "name"), [(g, n) for g in GROUPS for n in list(GROUPS[g])[1:]])
def test_it_is_the_plain_form_or_refused(group, name, method):
    plain, by_hand = next(iter(GROUPS[group].values())), GROUPS[group][name]
    torch.testing.assert_close(by_hand(X), plain(X))
    explain = PASSES[method]
    if name in REFUSED.get((method.removesuffix(", gamma"), group), "").split("|"):
        with pytest.raises(UnsupportedOperationError, match=WHY):
            explain(lambda x: by_hand(F.linear(x, BEFORE)))
        return
    found, expected = (explain(lambda x, f=f: f(F.linear(x, BEFORE))) for f in (by_hand, plain))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_sink_beside_one_key_is_no_activation(tokens):
    """A learned logit that is joined to the scores belongs to attention, however few keys are."""
    sink, x = 0.3, X[:, :tokens]

    def by_hand(queries, x):
        scores = queries @ x.mT
        joined = torch.cat([scores, scores.new_full((*scores.shape[:2], 1), sink)], -1)
        return joined.softmax(-1)[..., :-1] @ x

    def fused(queries, x):
        keys = F.pad(x, (0, 0, 0, 1))  # a key of zeros, whose scores are those of the mask
        mask = x.new_zeros(keys.shape[1]).index_fill(0, torch.tensor([tokens]), sink)
        return F.scaled_dot_product_attention(queries, keys, keys, mask.expand(tokens, -1), scale=1)

    def model(attend):
        def scores(x):
            x = x + F.scaled_dot_product_attention(x, x, x)
            return (x + attend(F.linear(x, BEFORE), x)).sum((1, 2))

        return scores

    found, expected = (AttnLRP(model(attend)).attribute(x) for attend in (by_hand, fused))
    torch.testing.assert_close(found, expected)
