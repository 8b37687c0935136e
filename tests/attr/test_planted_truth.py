"""What each method claims, on models that are written by hand, where the right answer is known.

The first model reads two classes by two heads: one looks for the token with mark a and takes its
evidence for class a, the other does so for b. So one token decides each class. In other samples
both heads look at a token that says nothing, or at one that speaks against both classes. In the
second model one token carries the evidence of another one on, so that the last layer never sees
where it came from.
"""

import pytest
import torch
from captum.attr import ShapleyValueSampling

from tests.attr.claims import CLAIMS, EXACT, Seen
from tests.attr.planted import Head, Planted, tokens
from tests.attr.subjects import METHODS
from tests.public_methods import OF_SCORES

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


def opposed():
    """Samples in which both heads also look at the last token, which is against their class."""
    samples = decided()[:1].repeat(3, 1, 1)
    against = {"mark_a": 0.5, "mark_b": 0.5, "evidence_a": -0.5, "evidence_b": -0.75}
    strength = torch.tensor([1.0, 0.5, 1.2], dtype=torch.float64)
    samples[:, 5] = strength[:, None] * tokens(against)[0, 0]
    return samples


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


def test_each_method_is_in_the_tables():
    assert CLAIMS.keys() >= OF_SCORES
    # LeGrad refuses many of the models there, and has tests of its own.
    assert METHODS.keys() >= OF_SCORES - {"LeGrad"}, "add it to `METHODS` in tests/attr/subjects.py"


@pytest.mark.parametrize("samples", [decided, distracted, opposed])
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


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_a_token_that_is_looked_at_and_speaks_against_the_class(claims, model, target):
    relevance = explained(claims, model, opposed(), target)
    sign = {"for": 1, "nothing": 0, "against": -1}[claims.of_opposed]
    uninvolved = relevance[:, 3]
    assert (relevance[:, 5] - uninvolved).sign().tolist() == [sign] * 3
    assert peak(relevance).tolist() == [PLACES[0][target if claims.class_specific else 0]] * 3


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
