"""Functions written by hand have the relevance of the plain form, or are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    TransformerAttribution,
)
from captum_transformer.errors import NoAttentionError, UnsupportedOperationError
from tests.rules.test_same_function import BEFORE, PASSES, POSITIONS, Function, V, W, X
from tests.rules.written_forms import GROUPS, top

LRP = ("LRP", "PartialLRP")
_BY_QUOTIENT = "exp2|exp2, shifted|pow|operator|by a product|by einsum|by a mean|cumulative|python|"
_SHIFTED = "maximum twice|log-sum-exp|shifted twice|step by step|in blocks"
# These rules are for whole functions, which are not recognised in these forms.
REFUSED: dict[tuple[str, str], str] = {
    ("AttnLRP", "softmax"): f"{_BY_QUOTIENT}{_SHIFTED}|one maximum|squared",
    ("AttnLRP", "log softmax"): (
        "log-sum-exp|shifted twice|shifted twice by a constant|of a quotient|exp2|by a product|"
        "reciprocal"
    ),
    ("AttnLRP", "log-sum-exp"): "by hand|shifted|by a product",
    ("AttnLRP", "weighted by a softmax"): "by a product|joined|in blocks",
    ("AttnLRP", "sigmoid gate"): "quotient|exponentials",
    ("AttnLRP", "swiglu"): "einsum of three|halved between|divided",
    ("GIM", "softmax"): (
        "by a product|by a mean|cumulative|python|maximum twice|squared|in blocks"
    ),
    ("GIM", "weighted by a softmax"): "by a product|joined|in blocks",
    ("GIM", "sigmoid gate"): "quotient|exponentials",
    ("GIM", "swiglu"): "einsum of three|halved between|divided",
    **{(method, "softmax"): _SHIFTED for method in LRP},
    **{
        (method, "log softmax"): (
            "log-sum-exp|shifted twice|shifted twice by a constant|exp2|by a product|reciprocal"
        )
        for method in LRP
    },
    **{(method, "log-sum-exp"): "shifted" for method in LRP},
    **{(method, "weighted by a softmax"): "in blocks" for method in LRP},
    **{(method, "sigmoid gate"): "exponentials" for method in LRP},
    **{(method, "swiglu"): "einsum of three|halved between|divided" for method in LRP},
}
WHY = "written by hand|written in several steps|activation of another signal"


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize(("group", "name"), [(g, n) for g in GROUPS for n in list(GROUPS[g])[1:]])
def test_a_written_form_equals_the_plain_one_or_is_refused(group, name, method):
    plain, by_hand = next(iter(GROUPS[group].values())), GROUPS[group][name]
    torch.testing.assert_close(by_hand(X), plain(X))
    explain = PASSES[method]
    if name in REFUSED.get((method.removesuffix(", gamma"), group), "").split("|"):
        with pytest.raises(UnsupportedOperationError, match=WHY):
            explain(lambda x: by_hand(F.linear(x, BEFORE)))
        return
    found, expected = (explain(lambda x, f=f: f(F.linear(x, BEFORE))) for f in (by_hand, plain))
    # Denominators are stabilised in a different place in each form.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


SCORES: dict[str, Function] = {
    "shifted before a softmax": lambda s: (s - top(s)).softmax(-1),
    "shifted by one maximum": lambda s: (s - s.max()).softmax(-1),
    "shifted by a constant": lambda s: (s - top(s).detach()).softmax(-1),
    **{
        name: GROUPS["softmax"][name]
        for name in ("exp2", "pow", "operator", "by einsum", "one maximum")
    },
}
NOT_READ = ["python", "in blocks", "maximum twice", "step by step", "squared"]
METHODS = [GenericAttentionRelevance, TransformerAttribution, ConservativeLRP, AttentionRollout]


def attention(softmax: Function, normed: Function = lambda x: x) -> Function:
    def model(x: Tensor) -> Tensor:
        x = x + POSITIONS[:, :1]
        q, k = normed(F.linear(x, BEFORE)), normed(F.linear(x, V))
        x = x + softmax(q @ k.mT + POSITIONS[:, :4]) @ x
        return F.linear(x.mean(1), W.T)

    return model


@pytest.mark.parametrize("method", [*METHODS, PartialLRP])
@pytest.mark.parametrize("name", [*SCORES, *NOT_READ])
def test_attention_with_a_written_softmax_is_known_or_refused(name, method):
    if name in NOT_READ:
        with pytest.raises(NoAttentionError):
            method(attention(GROUPS["softmax"][name])).attribute(X, target=2)
        return
    found, expected = (
        method(attention(softmax)).attribute(X, target=2)
        for softmax in (SCORES[name], lambda scores: scores.softmax(-1))
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", [*METHODS, PartialLRP, AttnLRP])
@pytest.mark.parametrize("name", list(GROUPS["length"])[1:])
def test_attention_by_cosines(name, method):
    found, expected = (
        method(attention(lambda s: s.softmax(-1), GROUPS["length"][form])).attribute(X, target=2)
        for form in (name, "fused")
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
