"""What each method claims, on models that are written by hand, where the right answer is known.

The first model reads two classes by two heads: one looks for the token with mark a and takes its
evidence for class a, the other does so for b. So one token decides each class. In a second sample
both heads look at a token that says nothing. In the second model one token carries the evidence
of another one on, so that the last layer never sees where it came from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from captum.attr import ShapleyValueSampling
from torch import Tensor, nn

import captum_transformer
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
from tests.attr.planted import Head, Planted, tokens
from tests.attr.subjects import Method

EXACT = {"rtol": 0.0, "atol": 1e-12}
# Layer-wise relevance propagation divides by sums with an epsilon in them.
STABILISED = {"rtol": 0.0, "atol": 3e-8}


@dataclass(frozen=True)
class Seen:
    """What the asking token, the first one, sees of a sample; rows are ``(tokens,)``.

    Attributes:
        heads: the attention of both heads, ``(2, tokens)``.
        own: the number of the class's head.
        logits: the logits of that head's attention.
        evidence: what it reads of each token.
    """

    heads: Tensor
    own: int
    logits: Tensor
    evidence: Tensor

    @property
    def contributed(self) -> Tensor:
        """By each token's value: these sum up to the score."""
        return self.heads[self.own] * self.evidence

    @property
    def attracted(self) -> Tensor:
        """By each token's attention, to first order: logit times the score's gradient there."""
        attention, score = self.heads[self.own], self.contributed.sum()
        return self.logits * attention * (self.evidence - score)

    @property
    def asking(self) -> Tensor:
        return torch.eye(self.heads.shape[1], dtype=torch.float64)[0]


def of_own_head(row: Tensor) -> Tensor:
    """The mean over two heads of which the other one has nothing for the class."""
    return row.relu() / 2


def attention_relevance(seen: Seen) -> Tensor:
    """Half of the relevance that arrives, one; the other half is the values'."""
    return seen.contributed / seen.contributed.sum() / 2


def chefer_2021_cvpr(seen: Seen) -> Tensor:
    """Eq. 13: I + E_h (∇A R)⁺; the gradient at the attention is what the head reads."""
    return seen.asking + of_own_head(seen.evidence * attention_relevance(seen))


def grad_cam(seen: Seen) -> Tensor:
    cam = of_own_head(seen.evidence.mean() * seen.heads[seen.own])
    return (cam - cam.min()) / (cam.max() - cam.min())


def layer_wise_relevance(seen: Seen) -> Tensor:
    """A V in halves, Q Kᵀ again in halves; what no key has told apart is lost there."""
    attention = attention_relevance(seen)
    keys = torch.where(seen.logits == 0, 0.0, attention / 2)
    return attention + keys + seen.asking * keys.sum()


def attn_lrp(seen: Seen) -> Tensor:
    """A V in halves, the softmax by its gradient, Q Kᵀ again in halves."""
    keys = seen.attracted / 4
    return seen.contributed / 2 + keys + seen.asking * keys.sum()


def gradient_times_input(seen: Seen) -> Tensor:
    return seen.contributed + seen.attracted + seen.asking * seen.attracted.sum()


@dataclass(frozen=True)
class Claims:
    """What is claimed of a method.

    Attributes:
        method: makes it.
        row: the relevance of each token in closed form.
        of_ignored: what a token gets that is looked at but says nothing: ``"nothing"``, ``"most"``,
            or ``"against"``, for the attention that it takes from the one that does.
        of_source: where evidence is carried on, the source has ``"all"`` the relevance; the
            ``"peak"``; ``"less"`` than who carries it but more than any other; or ``"none"``, no
            more than tokens without a part in it.
        class_specific: whether it tells classes apart.
        total: what all relevance sums up to: ``"score"``, ``"one"`` or None.
        tolerance: how exact it is.
    """

    method: Method
    row: Callable[[Seen], Tensor]
    of_ignored: str
    of_source: str
    class_specific: bool = True
    total: str | None = None
    tolerance: dict[str, float] | None = None


CLAIMS = {
    # Chefer, Gur & Wolf, CVPR 2021: class-specific, and deeper than the last layer.
    "TransformerAttribution": Claims(
        TransformerAttribution, chefer_2021_cvpr, "nothing", "less", tolerance=STABILISED
    ),
    "TransformerAttribution, normalised": Claims(
        partial(TransformerAttribution, normalize_rows=True),
        lambda seen: chefer_2021_cvpr(seen) / chefer_2021_cvpr(seen).sum(),
        "nothing",
        "less",
        tolerance=STABILISED,
    ),
    # Its baseline: conserved, but a quarter goes to the query each time.
    "full LRP": Claims(
        partial(TransformerAttribution, propagate_to_input=True),
        layer_wise_relevance,
        "nothing",
        "peak",
        total="one",
        tolerance=STABILISED,
    ),
    # Chefer, Gur & Wolf, ICCV 2021, eq. 5-6.
    "GenericAttentionRelevance": Claims(
        GenericAttentionRelevance,
        lambda seen: seen.asking + of_own_head(seen.contributed),
        "nothing",
        "less",
    ),
    # Voita et al., ACL 2019: relevance of the heads, no further down than one layer.
    "PartialLRP": Claims(
        PartialLRP,
        lambda seen: of_own_head(attention_relevance(seen)),
        "nothing",
        "none",
        tolerance=STABILISED,
    ),
    # Selvaraju et al., ICCV 2017, on attention: one weight per head can't tell tokens apart.
    "AttentionGradCam": Claims(AttentionGradCam, grad_cam, "most", "none"),
    # Abnar & Zuidema, ACL 2020: follows attention through the layers, whatever it reads.
    "AttentionRollout": Claims(
        AttentionRollout,
        lambda seen: (seen.asking + seen.heads.mean(0)) / 2,
        "most",
        "less",
        class_specific=False,
    ),
    "RawAttention": Claims(
        RawAttention, lambda seen: seen.heads.mean(0), "most", "none", class_specific=False
    ),
    # Ali et al., ICML 2022: attention held constant, the values have it all.
    "ConservativeLRP": Claims(
        ConservativeLRP, lambda seen: seen.contributed, "nothing", "all", total="score"
    ),
    # What they start from: not conserved, since queries and keys count twice.
    "gradient x input": Claims(
        partial(ConservativeLRP, attention_rule=False, layer_norm_rule=False),
        gradient_times_input,
        "against",
        "peak",
    ),
    # Achtibat et al., ICML 2024: through queries and keys as well; the softmax's bias absorbs.
    "AttnLRP": Claims(AttnLRP, attn_lrp, "against", "peak"),
}
SHARPNESS = (3.0, 2.0)
EVIDENCE = ("evidence_a", "evidence_b")
# Where the token with evidence for a, and that for b, are in each sample.
PLACES = [(2, 4), (5, 1), (3, 2)]


@pytest.fixture
def model():
    heads = [
        Head("cls", mark, sharpness, evidence, evidence)
        for mark, sharpness, evidence in zip(("mark_a", "mark_b"), SHARPNESS, EVIDENCE, strict=True)
    ]
    return Planted([heads], list(EVIDENCE))


def decided():
    """Samples in which the tokens with evidence are those that the heads look at."""
    samples = []
    for of_a, of_b in PLACES:
        features = [{"cls": 1.0}, {}, {}, {}, {}, {}]
        features[of_a] = {"mark_a": 1.0, "evidence_a": 1.5}
        features[of_b] = {"mark_b": 1.0, "evidence_b": 2.5}
        samples.append(tokens(*features))
    return torch.cat(samples)


def distracted():
    """Samples in which both heads look at the last but one token, which has no evidence."""
    samples = []
    for of_a, of_b in [(2, 5), (1, 3), (5, 2)]:
        features = [{"cls": 1.0}, {}, {}, {}, {"mark_a": 1.0, "mark_b": 1.0}, {}]
        features[of_a] = {"evidence_a": 1.5}
        features[of_b] = {"evidence_b": 2.5}
        samples.append(tokens(*features))
    return torch.cat(samples)


def seen_of(x, target):
    """Read off the features, not off the model."""
    named = dict(zip("cls relay mark_a mark_b evidence_a evidence_b".split(), x.T, strict=False))
    logits = torch.stack([SHARPNESS[0] * named["mark_a"], SHARPNESS[1] * named["mark_b"]])
    evidence = named[EVIDENCE[target]]
    return Seen(logits.softmax(1), target, logits[target], evidence)


def explained(claims, model, x, target):
    return claims.method(model).attribute_tokens(x, target=target)


def test_each_method_is_in_the_table():
    names = {name for name in captum_transformer.__all__ if name != "TransformerMethod"}
    methods = {name for name in names if hasattr(getattr(captum_transformer, name), "attribute")}
    assert methods <= CLAIMS.keys()


@pytest.mark.parametrize("samples", [decided, distracted])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_each_token_has_the_relevance_of_the_papers_formula(claims, model, samples, target):
    x = samples()
    expected = torch.stack([claims.row(seen_of(sample, target)) for sample in x])
    result = explained(claims, model, x, target)
    torch.testing.assert_close(result, expected, **(claims.tolerance or EXACT))


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_the_peak_is_at_the_token_that_decides_if_classes_are_told_apart(claims, model):
    first, second = (explained(claims, model, decided(), target) for target in (0, 1))
    peaks = list(zip(peak(first).tolist(), peak(second).tolist(), strict=True))
    if claims.class_specific:
        assert peaks == PLACES
    else:
        # The head of class a is the sharper one: of class b there is no sign.
        assert peaks == [(of_a, of_a) for of_a, _ in PLACES]
        assert first.equal(second)


def peak(relevance):
    """The most relevant of the tokens other than the asking one."""
    return relevance[:, 1:].argmax(1) + 1


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_no_other_token_gets_any_if_classes_are_told_apart(claims, model):
    for target, places in enumerate(zip(*PLACES, strict=True)):
        rest = explained(claims, model, decided(), target)
        rest[range(3), places] = rest[:, 0] = 0
        assert rest.any() != claims.class_specific


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_conservation(claims, model, target):
    x = decided()
    score, total = model(x)[:, target].detach(), explained(claims, model, x, target).sum(1)
    if claims.total is None:
        assert ((total - score).abs() > 0.03 * score).all()
    else:
        expected = score if claims.total == "score" else torch.ones_like(score)
        torch.testing.assert_close(total, expected, **(claims.tolerance or EXACT))


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_a_token_that_is_looked_at_but_says_nothing(claims, model, target):
    relevance = explained(claims, model, distracted(), target)
    ignored = relevance[:, 4]
    if claims.of_ignored == "nothing":
        assert not ignored.any()
    elif claims.of_ignored == "against":
        assert (ignored < 0).all()
    else:
        assert peak(relevance).tolist() == [4, 4, 4]


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_evidence_that_another_token_has_carried_on(claims):
    carries = Head("relay", "mark_a", 3.0, "evidence_a", "carried")
    reads = Head("cls", "relay", 2.0, "carried", "evidence_b")
    model = Planted([[carries], [reads]], ["evidence_b"])
    source, relay, others = 2, 4, [1, 3, 5]
    x = tokens({"cls": 1}, {}, {"mark_a": 1, "evidence_a": 1.5}, {}, {"relay": 1}, {})
    (relevance,) = explained(claims, model, x, 0)
    most_of_others = relevance[others].max().item()
    if claims.of_source == "all":
        assert relevance[source].item() == pytest.approx(model(x).item(), abs=1e-12)
        assert not relevance[[0, relay, *others]].any()
    elif claims.of_source == "peak":
        assert relevance.argmax() == source
        assert relevance[relay] > most_of_others == 0
    elif claims.of_source == "less":
        assert relevance[relay] > relevance[source] > 2 * most_of_others
    else:
        assert relevance[source].item() == pytest.approx(most_of_others, abs=1e-12)
        assert relevance[relay] > 2 * most_of_others


def test_in_a_linear_model_relevance_is_the_shapley_value():
    # No token asks for anything: attention is uniform, and the scores are linear in the tokens.
    heads = [Head("carried", "noise", 1.0, evidence, evidence) for evidence in EVIDENCE]
    model, x = Planted([heads], list(EVIDENCE)), decided()
    # What a token adds is the same in whatever order the tokens come: its score alone.
    alone = [model(x * keep[:, None])[:, 1] for keep in torch.eye(6, dtype=torch.float64)]
    expected = torch.stack(alone, 1).detach()
    assert expected[range(3), [4, 1, 2]].tolist() == pytest.approx([2.5 / 6] * 3)
    which = torch.arange(6)[None, :, None]
    shapley = ShapleyValueSampling(model).attribute(x, target=1, feature_mask=which, n_samples=2)
    single = {"rtol": 0.0, "atol": 1e-6}  # as Captum adds them up
    torch.testing.assert_close(shapley[..., 0].double(), expected, **single)
    for name in ("ConservativeLRP", "gradient x input"):
        torch.testing.assert_close(explained(CLAIMS[name], model, x, 1), expected, **EXACT)
    # Its uniform rule leaves the attention half of what the values contribute; nothing takes it.
    torch.testing.assert_close(explained(CLAIMS["AttnLRP"], model, x, 1), expected / 2, **EXACT)


class Reads(nn.Module):
    """The first token attends with random weights, perhaps normalised before and after."""

    def __init__(self, *, attends: bool, normalises: bool) -> None:
        super().__init__()
        self.attends = attends
        layer_norm = partial(nn.LayerNorm, 6, eps=0.0, elementwise_affine=False)
        self.before, self.after = (layer_norm() if normalises else nn.Identity() for _ in range(2))
        self.attention = nn.MultiheadAttention(6, 1, bias=False, batch_first=True)
        self.head = nn.Linear(6, 2, bias=False)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.attends:
            x = self.attention(x, x, x)[0]
        return self.head(self.after(x[:, 0]))


@pytest.fixture
def random_tokens():
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).double()


def total(model, x, *, attention, layer_norm):
    method = ConservativeLRP(model, attention_rule=attention, layer_norm_rule=layer_norm)
    return method.attribute(x, target=1).sum((1, 2))


def test_gradient_times_input_loses_a_covariance_in_attention(random_tokens):
    """Ali et al., ICML 2022, on attention; the AH rule (eq. 11) conserves."""
    torch.manual_seed(0)
    model, x = Reads(attends=True, normalises=False), random_tokens
    query, key, value = model.attention.in_proj_weight.detach().chunk(3)
    logits = (x @ key.T @ (query @ x[:, 0, :, None]))[..., 0] / 6**0.5
    attention = logits.softmax(1)
    to_score = model.head.weight[1] @ model.attention.out_proj.weight
    values = x @ (to_score @ value).detach()
    score = model(x)[:, 1].detach()
    torch.testing.assert_close((attention * values).sum(1), score, **EXACT)
    # The logits grow twice as fast as the input: query and key both have it.
    covariance = (attention * logits * (values - score[:, None])).sum(1)
    plain = total(model, x, attention=False, layer_norm=False)
    torch.testing.assert_close(plain, score + 2 * covariance, **EXACT)
    assert (covariance.abs() > 1e-3).all()
    held = total(model, x, attention=True, layer_norm=False)
    torch.testing.assert_close(held, score, **EXACT)


def test_gradient_times_input_loses_all_in_a_layer_norm(random_tokens):
    """Ali et al., ICML 2022: without its epsilon LayerNorm lets nothing through; eq. 12 does."""
    torch.manual_seed(0)
    model, x = Reads(attends=False, normalises=True), random_tokens
    score = model(x)[:, 1].detach()
    assert (score.abs() > 1e-2).all()
    plain = total(model, x, attention=False, layer_norm=False)
    torch.testing.assert_close(plain, torch.zeros_like(score), **EXACT)
    held = total(model, x, attention=False, layer_norm=True)
    torch.testing.assert_close(held, score, **EXACT)


def test_both_rules_are_needed_where_there_is_both(random_tokens):
    torch.manual_seed(0)
    model, x = Reads(attends=True, normalises=True), random_tokens
    score = model(x)[:, 1].detach()
    torch.testing.assert_close(total(model, x, attention=True, layer_norm=True), score, **EXACT)
    for attention, layer_norm in ((False, False), (True, False), (False, True)):
        lost = total(model, x, attention=attention, layer_norm=layer_norm) - score
        assert (lost.abs() > 1e-2 * score.abs()).all()
