"""The study's made-up tasks have the properties that their scores rely on."""

import pytest
import torch

from benchmarks.study.bootstrap import draw
from benchmarks.study.data import lookup as lookup_data
from benchmarks.study.data import molecules, texts
from benchmarks.study.data import similarity as similarity_data
from benchmarks.study.methods import RANDOM
from benchmarks.study.subject import evenly
from benchmarks.study.tasks import lookup, similarity
from tests.benchmarks.study_data import make_molecules


def test_each_model_has_its_own_samples():
    parts = [evenly(500, 120, seed) for seed in range(3)]
    assert len({*parts[0], *parts[1], *parts[2]}) >= 358
    assert evenly(3, 10) == [0, 1, 2]


def test_the_answer_to_a_lookup_is_in_the_prompt():
    prompts, places, answers, rivals = lookup_data.draw(50, seed=0)
    assert prompts.shape == (50, lookup_data.LENGTH)
    items = prompts[:, 1:-1] - 1
    keys, values = items // lookup_data.VALUES, items % lookup_data.VALUES
    for row in range(50):
        assert len(set(keys[row].tolist())) == len(set(values[row].tolist())) == lookup_data.ITEMS
        asked = prompts[row, -1] - 1 - lookup_data.KEYS * lookup_data.VALUES
        place = places[row] - 1
        assert keys[row, place] == asked
        first = lookup_data.SIZE - lookup_data.VALUES
        assert values[row, place] == answers[row] - first
        assert rivals[row] - first in values[row]
        assert rivals[row] != answers[row]


def test_the_share_of_the_first_token_is_a_score():
    relevance = torch.tensor([[6.0, -1.0, 3.0], [0.0, -4.0, 1.0]])
    found = lookup.measured({"answer": relevance}, "answer", torch.tensor([2, 2])).scores
    value = {name: [row[0] for row in score.values] for name, score in found.items()}
    assert value["answer, right token has most"] == [0, 100]
    assert value["answer, without the first token"] == [100, 100]
    assert value["answer, share of the right token"] == pytest.approx([30, 20])
    assert value["answer, share of the first token"] == pytest.approx([60, 0])


def test_the_planted_pair_of_words_is_found(tmp_path):
    record = similarity.subject(tmp_path, tmp_path, samples=40)
    study_of = {
        name: record.metrics["pairs of words"](record.methods[name]())
        for name in ("BiLRP", "Cosine of last hidden states", RANDOM)
    }
    most = {
        name: draw(found.scores["the names have most"]).value for name, found in study_of.items()
    }
    assert most["BiLRP"] >= 95
    assert most["BiLRP"] > most["Cosine of last hidden states"] > most[RANDOM]


def test_the_names_of_an_animal_are_at_the_given_places():
    pairs = similarity_data.draw(50, seed=0)
    named = [each.ids.gather(1, each.place[:, None])[:, 0] - 1 for each in pairs]
    animals = [names // similarity_data.NAMES for names in named]
    assert torch.equal(*animals)
    assert {*animals[0].tolist()} == {*range(similarity_data.ANIMALS)}
    names = similarity_data.ANIMALS * similarity_data.NAMES
    for each in pairs:
        assert ((each.ids <= names).sum(1) == 1).all()


def test_phrases_are_read_with_their_words():
    tree = texts.parse("(4 (2 A) (4 (3 very) (4 good)))")
    assert tree.words == ["a", "very", "good"]
    assert tree.sentiment == 4
    assert sorted(tree.phrases) == [(0, 1, 2), (0, 3, 4), (1, 2, 3), (1, 3, 4), (2, 3, 4)]


def test_molecules_are_masked_one_token_at_a_time(tmp_path):
    make_molecules(tmp_path)
    ids, places, truth = molecules.masked(tmp_path, 7)
    mask = molecules.vocabulary(tmp_path)["[MASK]"]
    assert len(ids) == len(places) == len(truth) == 7
    for text, place in zip(ids, places, strict=True):
        assert (text == mask).nonzero().flatten().tolist() == [place]
