"""Sentences with a subject and a verb: their grammar, exact patching, and what is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.study.activation_patching import KINDS, patched
from benchmarks.study.bootstrap import Score, draw
from benchmarks.study.data import agreement as grammar
from benchmarks.study.methods import PATCHING
from benchmarks.study.models import speaker
from benchmarks.study.tasks import agreement, patching


@pytest.fixture(scope="module")
def sentences():
    return grammar.draw(40, seed=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = speaker(grammar.SIZE, grammar.LENGTH, 2, grammar.END).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_the_verb_agrees_with_the_subject_and_with_no_other_noun(sentences):
    plurals = {words[1] for words in (*grammar.NOUNS, *grammar.MAIN)}
    between = []
    for row, words in enumerate(sentences.ids):
        subject, last = int(sentences.subject[row]), int(sentences.last[row])
        noun, verb = (grammar.WORDS[words[place]] for place in (subject, last + 1))
        other = grammar.WORDS[sentences.wrong[row]]
        assert (noun in plurals) == (verb in plurals)
        assert words[last + 1] == sentences.right[row]
        assert (verb, other) in grammar.MAIN or (other, verb) in grammar.MAIN
        assert (words[last + 2 :] == grammar.END).all()
        assert last - subject <= grammar.FARTHEST
        nouns = sentences.nouns()[row].nonzero().flatten().tolist()
        assert subject in nouns
        between.append([place for place in nouns if place > subject])
    assert all(between)
    numbers = {
        (grammar.WORDS[words[places[-1]]] in plurals, grammar.WORDS[verb] in plurals)
        for words, places, verb in zip(sentences.ids, between, sentences.right, strict=True)
    }
    assert len(numbers) == 4


def test_a_swapped_subject_is_the_same_noun_in_the_other_number(sentences):
    prompts, swapped = sentences.prompts(), sentences.swapped()
    rows, places = (prompts != swapped).nonzero().T
    assert rows.tolist() == list(range(40))
    assert torch.equal(places, sentences.subject)
    for one, other in zip(prompts[rows, places], swapped[rows, places], strict=True):
        assert sorted((grammar.WORDS[one], grammar.WORDS[other])) in map(list, grammar.NOUNS)


def test_plain_sentences_have_nothing_between_subject_and_verb():
    sentences = grammar.draw(200, seed=0, plain=0.4)
    assert 0.3 < (sentences.subject == sentences.last).double().mean() < 0.5


def test_sentences_are_the_same_for_the_same_seed(sentences):
    again = grammar.draw(40, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(sentences, again, strict=True))
    assert not torch.equal(grammar.draw(40, seed=1).ids, sentences.ids)


@torch.no_grad()
def test_patching_the_end_of_the_residual_stream_gives_the_clean_score(model, sentences):
    clean, corrupted = (
        agreement.contrast(model(ids).logits, sentences)
        for ids in (sentences.prompts(), sentences.swapped())
    )
    found = patched(model, sentences)
    _, reached = sentences.from_subject()
    last = reached.sum(1) - 1
    residual = found["residual"][:, -1]
    gained = residual.gather(1, last[:, None])[:, 0]
    assert torch.allclose(gained, clean - corrupted)
    before = reached & (torch.arange(reached.shape[1]) < last[:, None])
    assert not residual[before].any()
    assert torch.equal(residual.isfinite(), reached)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_a_part_is_patched_alone(model, sentences):
    """By hand: a head of the first layer, and the MLP behind it at the subject."""
    rows, (block, *_) = torch.arange(40), model.transformer.h
    kept = {}
    hooks = [
        block.attn.c_proj.register_forward_pre_hook(lambda _, given: kept.update(heads=given[0])),
        block.mlp.register_forward_hook(lambda _, __, made: kept.update(mlp=made)),
    ]
    model(sentences.prompts())
    clean = dict(kept)
    for hook in hooks:
        hook.remove()

    def head(_, given):
        changed = given[0].clone()
        changed[..., 16:32] = clean["heads"][..., 16:32]
        return (changed,)

    def mlp(_, __, made):
        made[rows, sentences.subject] = clean["mlp"][rows, sentences.subject]

    found = patched(model, sentences)
    before = agreement.contrast(model(sentences.swapped()).logits, sentences)
    for register, change, gained in [
        (block.attn.c_proj.register_forward_pre_hook, head, found["head"][:, 0, 1]),
        (block.mlp.register_forward_hook, mlp, found["MLP"][:, 0, 0]),
    ]:
        hook = register(change)
        after = agreement.contrast(model(sentences.swapped()).logits, sentences)
        hook.remove()
        assert torch.allclose(gained, after - before)
        assert gained.abs().max() > 1e-6


def test_estimates_have_the_shapes_of_what_is_patched(model, sentences):
    exact = patched(model, sentences)
    for method in PATCHING:
        found = patching.estimates(method, model, sentences)
        assert {kind: scores.shape for kind, scores in found.items()} == {
            kind: exact[kind].shape for kind in KINDS
        }
        last = found["residual"][:, -1].nan_to_num()
        assert (last != 0).sum(1).tolist() == [1] * len(sentences.ids)


def test_parts_that_a_sentence_does_not_have_are_left_out():
    random = np.random.default_rng(0)
    x, y = (torch.tensor(random.normal(size=(4, 3, 5))) for _ in range(2))
    for each in (x, y):
        each[:, :, 3:] = torch.nan
    maps, exact = dict.fromkeys(KINDS, y), dict.fromkeys(KINDS, x)
    found = patching.measured(maps, exact).scores
    a, b = x[:, :, :3].flatten().numpy(), y[:, :, :3].flatten().numpy()
    assert draw(found["MLP"]).value == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert draw(found["head, slope"]).value == pytest.approx(np.polyfit(a, b, 1)[0])


def test_the_subject_is_looked_for_in_front_of_the_verb(sentences):
    rows = torch.arange(40)
    relevance = torch.rand(40, grammar.LENGTH)
    relevance[rows, sentences.subject] = 3
    relevance[rows, sentences.last + 1] = 5  # behind the last word that the verb is read from
    relevance[0, 0] = 4  # the start token, which is no noun
    found = agreement.measured({"contrast": relevance}, sentences).scores
    values = {name: np.array(score.values)[:, 0] for name, score in found.items()}
    assert values["subject has most"].tolist() == [0] + [100] * 39
    assert values["most of the nouns"].tolist() == [100] * 40
    assert values["its rank"].tolist() == [2] + [1] * 39
    visible = relevance[1, : sentences.last[1] + 1].sum()
    assert values["its share"][1] == pytest.approx(300 / visible.item())


def test_intervals_cover_models():
    parts = [Score.of([value, value + 1] * 50) for value in (0.0, 10.0, 20.0)]
    joined = Score.joined(parts)
    alone, drawn = draw(replace(joined, models=None)), draw(joined)
    assert drawn.value == alone.value
    samples, both = alone.interval(), drawn.interval()
    assert both.high - both.low > 5 * (samples.high - samples.low)
    # All of one model, as happens once in nine draws.
    assert both.low == pytest.approx(0.5, abs=0.2)
    assert both.high == pytest.approx(20.5, abs=0.2)


def test_one_model_is_drawn_as_if_there_were_no_others():
    values = np.random.default_rng(0).normal(size=30).tolist()
    alone, one = Score.of(values), Score.joined([Score.of(values)])
    assert np.array_equal(draw(alone).others, draw(one).others)
    assert np.array_equal(draw(alone).others, draw(replace(one, models=[0] * 30)).others)


def test_what_models_share_is_drawn_once_for_all():
    """The same photographs, of which the models say the same: two models are no more samples."""
    values = np.random.default_rng(0).normal(size=40).tolist()
    one = replace(Score.of(values), groups=list(range(40)))
    found, both = draw(one).interval(), draw(Score.joined([one, one])).interval()
    assert both.high - both.low == pytest.approx(found.high - found.low, rel=0.05)
    apart = draw(Score.joined([Score.of(values), Score.of(values)])).interval()
    assert apart.high - apart.low < 0.95 * (found.high - found.low)
