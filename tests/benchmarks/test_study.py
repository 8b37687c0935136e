"""The study runs from end to end on tiny made-up data, and goes on where it was stopped."""

import json
import zipfile

import numpy as np
import pytest
import timm
import torch
from matplotlib.image import imread
from PIL import Image
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

from benchmarks.study import __main__ as program
from benchmarks.study import page, pictures, pooled
from benchmarks.study import texts as texts_with_methods
from benchmarks.study.bootstrap import Score, draw
from benchmarks.study.data import clothing, molecules, texts
from benchmarks.study.data import lookup as lookup_data
from benchmarks.study.data import similarity as similarity_data
from benchmarks.study.methods import (
    CAPTUM,
    OF_EACH_VALUE,
    OF_STATES,
    PAIRS,
    PATCHING,
    PIXELS,
    POOLED,
    RANDOM,
    STATES,
    TRANSFORMER,
)
from benchmarks.study.order import untied
from benchmarks.study.papers import compare
from benchmarks.study.store import SCATTER, state_of
from benchmarks.study.subject import evenly, in_one
from benchmarks.study.tasks import lookup, mosaics, patching, readouts, similarity

METHODS = {*TRANSFORMER, *CAPTUM, RANDOM}
OF_PICTURES = METHODS | {name + PIXELS for name in (*OF_EACH_VALUE, RANDOM)}
OF_TEXTS = METHODS | {name + STATES for name in OF_STATES}
METHODS_OF = (
    dict.fromkeys(("vision", "mosaics", "clothing"), OF_PICTURES)
    | {task.NAME: (OF_PICTURES - {*POOLED}) | {*task.methods} for task in readouts.TASKS}
    | dict.fromkeys(("sentiment-last-token", "lookup", "agreement"), METHODS)
    | {"patching": {*PATCHING}, "similarity": {*PAIRS, RANDOM}}
)
TREES = [
    "(4 (2 A) (3 (3 very) (4 good)))",
    "(0 (2 A) (1 (2 very) (0 bad)))",
    "(3 (3 Good) (2 .))",
    "(1 (1 Bad) (2 .))",
    "(2 (2 So) (2 so))",
]
RANDOM_STATE = np.random.default_rng(0)


def noise(path, size, channels=3):
    shape = (*size, channels) if channels else size
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM_STATE.integers(0, 256, shape, dtype=np.uint8)).save(path)


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mosaics, "TRAINING", 200)
        patch.setattr(lookup, "TRAINING", 200)
        for module in (pictures, texts_with_methods):
            patch.setattr(module, "INTEGRATION_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Everything that the study reads, tiny."""
    folder = tmp_path_factory.mktemp("data")
    make_objects(folder / "tinyimagenet10_boxes")
    make_clothing(folder / "ccp_160")
    digits = np.arange(40) % 10
    images = RANDOM_STATE.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(folder / "mnist.npz", x_train=images, y_train=digits, x_test=images, y_test=digits)
    make_texts(folder)
    make_molecules(folder / "rxnmapper_albert" / "albert_heads_8_uspto_all_1310k")
    return folder


def make_objects(folder):
    rows = ["split,file,label,x0,y0,x1,y1"]
    for split, count in (("train", 20), ("val", 10)):
        for number in range(count):
            noise(folder / split / f"{number}.png", (64, 64))
            rows.append(f"{split},{number}.png,{number % 10},8,8,39,39")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")


def make_clothing(folder):
    names = [name for members in clothing.CLASSES.values() for name in members]
    (folder / "masks").mkdir(parents=True)
    for number in range(8):
        noise(folder / "images" / f"{number:04}.jpg", (160, 160))
        mask = np.zeros((160, 160), np.uint8)
        for index in range(8):  # a class to each strip, but for those that are padding
            mask[:, 20 * index : 20 * index + 20] = (index + number) % len(names) + 1
        mask[:, :4] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number:04}.png")
    lines = ["0\tnull", *(f"{i}\t{name}" for i, name in enumerate(names, start=1))]
    (folder / "labels.txt").write_text("\n".join(lines), encoding="utf-8")


def make_texts(folder):
    with zipfile.ZipFile(folder / "sst_trees.zip", "w") as archive:  # as it is downloaded
        for split in ("train", "dev"):
            archive.writestr(f"{split}.txt", "\n".join(3 * TREES))
    reviews = folder / "eraser_movies"
    (reviews / "docs").mkdir(parents=True)
    for split in ("train", "val"):
        lines = []
        for number in range(4):
            name = f"{split}_{number}.txt"
            (reviews / "docs" / name).write_text(
                "this is a\nvery good movie .\n" * 5, encoding="utf-8"
            )
            evidence = {"docid": name, "start_token": 3, "end_token": 5}
            label = "POS" if number % 2 else "NEG"
            entry = {"annotation_id": name, "classification": label, "evidences": [[evidence]]}
            lines.append(json.dumps(entry))
        (reviews / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def make_molecules(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"cCON()=123n>.", ">>"]
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AlbertConfig(
        vocab_size=len(tokens), embedding_size=8, intermediate_size=16, **settings
    )
    AlbertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")


def run(data, out, *further):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patching, "DEPTHS", (1, 2))  # each layer is patched by itself
        program.main(
            ["--data", str(data), "--out", str(out), "--samples", "4", "--threads", "1", *further]
        )
    return {
        record["name"]: record
        for record in json.loads((out / "study.json").read_text(encoding="utf-8"))
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def records(data, out):
    return run(data, out, "--epochs", "1", "--seeds", "1")


SCORES = {
    "vision": {"perturbation": 4, "segmentation": 3, "localisation": 2},
    "mosaics": {"grid pointing game": 1},
    "digits-class-token": {"grid pointing game": 2},
    "digits-mean-pooling": {"grid pointing game": 2},
    "digits-attention-pooling": {"grid pointing game": 2},
    "digits-registers": {"grid pointing game": 2},
    "digits-swin": {"grid pointing game": 2},
    "clothing": {"segmentation": 3, "localisation": 2},
    "sentiment": {"activation": 2, "removal": 2, "labels": 2, "conservation": 3},
    "sentiment-last-token": {"activation": 2, "removal": 2, "labels": 2, "conservation": 3},
    "reviews": {"rationales": 2},
    "lookup": {"answer": 4, "contrast": 4},
    "agreement": {"agreement": 4},
    "patching": {"1 layers": 8, "2 layers": 8},
    "similarity": {"pairs of words": 2},
    "molecules": {"conservation": 3, "conservation, words only": 3},
}


def test_each_method_has_each_score_with_its_interval(records):
    for task, metrics in SCORES.items():
        found = records[task]["metrics"]
        assert {metric: len(entry["scores"]) for metric, entry in found.items()} == metrics
        expected = METHODS_OF.get(task, OF_TEXTS)
        for metric, entry in found.items():
            for column in entry["scores"].values():
                if not metric.startswith("conservation"):
                    assert column["methods"].keys() == expected
                for row in column["methods"].values():
                    assert row["low"] <= row["value"] <= row["high"]


def test_facts_of_several_models_stand_side_by_side():
    assert in_one(["90.1% of 8", "91.2% of 8", "90.1% of 8"]) == "90.1% / 91.2% / 90.1% of 8"
    assert in_one(["1.5%, 1,234", "2.5%, 1,234"]) == "1.5% / 2.5%, 1,234"
    assert in_one(["the same", "the same"]) == "the same"
    assert in_one(["a b", "a"]) == "a b; a"


def test_each_model_has_samples_of_its_own():
    parts = [evenly(500, 120, seed) for seed in range(3)]
    assert len({*parts[0], *parts[1], *parts[2]}) >= 358
    assert evenly(3, 10) == [0, 1, 2]


def test_what_is_written_can_be_read(records, out):
    page = (out / "study.md").read_text(encoding="utf-8")
    for task in records:
        assert f"## {task}\n" in page
        assert (out / f"{task}-scores.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "vision-curves.png").is_file()
    assert (out / "molecules-conservation-2.png").is_file()


def test_the_page_is_filled_between_its_words(records, out, tmp_path):
    named = ["headlines", "published", *records]
    text = "".join(f"Of {name}:\n\n<!-- {name} -->\nold\n<!-- end -->\n\n" for name in named)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "study.md").write_text(text, encoding="utf-8")
    page.publish(list(records.values()), [out / "vision-scores.png"], tmp_path)
    written = (tmp_path / "docs" / "study.md").read_text(encoding="utf-8")
    assert "old" not in written
    for name in named:
        assert f"Of {name}:\n\n<!-- {name} -->\n" in written
    assert "| clothing | mIoU ↑ | " in written
    assert "| AttentionGradCam | 41.5 | " in written
    assert (tmp_path / "docs" / "images" / "study" / "vision-scores.png").is_file()
    kept = json.loads(
        (tmp_path / "benchmarks/results/study/mosaics.json").read_text(encoding="utf-8")
    )
    assert kept["facts"] == records["mosaics"]["facts"]


def test_tasks_that_were_not_run_again_keep_their_place(records, tmp_path):
    (tmp_path / "docs").mkdir()
    named = ["headlines", "published", *records]
    text = "".join(f"<!-- {name} -->\n\n<!-- end -->\n" for name in named)
    (tmp_path / "docs" / "study.md").write_text(text, encoding="utf-8")
    page.publish(list(records.values()), [], tmp_path)
    before = (tmp_path / "docs" / "study.md").read_text(encoding="utf-8")
    page.publish([records["lookup"]], [], tmp_path)
    assert (tmp_path / "docs" / "study.md").read_text(encoding="utf-8") == before


def test_the_answer_to_a_lookup_stands_in_the_prompt():
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


def test_the_share_of_the_first_token_is_told():
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


def test_the_names_of_an_animal_stand_where_it_is_said():
    pairs = similarity_data.draw(50, seed=0)
    named = [each.ids.gather(1, each.place[:, None])[:, 0] - 1 for each in pairs]
    animals = [names // similarity_data.NAMES for names in named]
    assert torch.equal(*animals)
    assert {*animals[0].tolist()} == {*range(similarity_data.ANIMALS)}
    names = similarity_data.ANIMALS * similarity_data.NAMES
    for each in pairs:
        assert ((each.ids <= names).sum(1) == 1).all()


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="one place for 'vision'"):
        page.filled("<!-- mosaics -->\n\n<!-- end -->", {"vision": "a table"})


def test_the_page_has_a_place_for_each_table():
    text = (page.ROOT / page.PAGE).read_text(encoding="utf-8")
    page.filled(text, dict.fromkeys(["headlines", "published", *program.TASKS], "a table"))


def test_what_is_there_is_not_computed_again(records, data, out):
    files = [path for kind in ("models", "maps", "results") for path in (out / kind).rglob("*.*")]
    lost = out / "results" / "vision-0" / "segmentation" / "Saliency.json"
    before = {path: path.stat().st_mtime_ns for path in files}
    lost.unlink()
    again = run(data, out, "--epochs", "1", "--seeds", "1", "--only", "vision", "sentiment")
    after = {path: path.stat().st_mtime_ns for path in files}
    assert {path for path in files if before[path] != after[path]} == {lost}
    assert again["vision"] == records["vision"]
    assert again["sentiment"] == records["sentiment"]


def test_the_models_of_a_task_differ(records, data, out):
    models = out / "models"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patching, "DEPTHS", (1,))
        for name, task in program.TASKS.items():
            if task.SEEDS == 1:
                continue
            first, second = (task.subject(data, models, 4, 1, seed) for seed in (0, 1))
            assert first.state != second.state
            assert (first.kept_as, second.kept_as) == (f"{name}-0", f"{name}-1")
            assert first.facts.keys() == second.facts.keys()


def test_the_models_of_a_task_are_pooled(records, data, out):
    (both,) = run(data, out, "--epochs", "1", "--seeds", "2", "--only", "sentiment").values()
    one = records["sentiment"]
    assert both["facts"]["models"] == "2, which differ in their seeds"
    assert one["facts"]["models"] == "one"
    results = [out / "results" / f"sentiment-{seed}" for seed in (0, 1)]

    def read(metric, kind):
        files = [folder / metric / "AttnLRP.json" for folder in results]
        return [json.loads(path.read_text(encoding="utf-8"))[kind] for path in files]

    found = both["metrics"]["activation"]
    values = [row[0] for scores in read("activation", "scores") for row in scores["AUAC"]["values"]]
    auac = found["scores"]["AUAC"]["methods"]["AttnLRP"]
    assert len(values) == 8
    assert auac["value"] == pytest.approx(np.mean(values))
    lines = [curves["activation"][1] for curves in read("activation", "curves")]
    assert found["curves"]["activation"]["AttnLRP"][1] == pytest.approx(np.mean(lines, 0))
    points = [x for curves in read("conservation", "curves") for x in curves[SCATTER][0]]
    assert both["metrics"]["conservation"]["curves"][SCATTER]["AttnLRP"][0] == points


def test_other_samples_are_computed_anew(records, data, tmp_path, out):
    (tmp_path / "models").symlink_to(out / "models")
    (tmp_path / "results").mkdir()
    again = ("--epochs", "1", "--seeds", "1", "--only", "sentiment")
    four = run(data, tmp_path, *again)["sentiment"]
    three = run(data, tmp_path, *again, "--samples", "3")
    assert four == records["sentiment"] | {"seconds": four["seconds"]}
    assert three["sentiment"]["metrics"] != four["metrics"]


def test_a_model_of_timm_is_studied_on_a_folder_of_pictures(tmp_path):
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    timm.models.save_for_hf(model, tmp_path / "model", model_args={"img_size": 32})
    for label in range(3):
        for number in range(2):
            noise(tmp_path / "imagenet" / f"n{label}" / f"{number}.png", (40, 50))
    name = f"local-dir:{tmp_path / 'model'}"
    (record,) = run(tmp_path, tmp_path / "out", "--model", name).values()
    assert record["metrics"]["perturbation"]["scores"].keys() == {
        f"{target}, {order}"
        for target in ("predicted", "target")
        for order in ("positive", "negative")
    }
    noise(tmp_path / "imagenet" / "one too many" / "0.png", (40, 50))
    with pytest.raises(ValueError, match=r"3 classes apart, but .* has 4"):
        run(tmp_path, tmp_path / "out", "--model", name)


def test_a_model_of_transformers_is_studied_on_sentences(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "a", "movie", "##s"]
    folder = tmp_path / "model"
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (tmp_path / "SST-2").mkdir()
    lines = ["sentence\tlabel", "a good movie\t1", "bad movies\t0", "good good good\t1"]
    (tmp_path / "SST-2" / "dev.tsv").write_text("\n".join(lines), encoding="utf-8")
    (record,) = run(tmp_path, tmp_path / "out", "--model", str(folder)).values()
    assert record["facts"]["samples"].startswith("3,")
    auac = record["metrics"]["activation"]["scores"]["AUAC"]
    assert auac["methods"].keys() == OF_TEXTS
    assert len(auac["published"]["rows"]) == 8


def test_models_that_do_something_else_are_refused(tmp_path):
    config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    AlbertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AlbertForMaskedLM: the study takes image and text"):
        run(tmp_path, tmp_path / "out", "--model", str(tmp_path))


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"neither a folder 'sst_trees' nor 'sst_trees.zip'"
    ):
        run(tmp_path, tmp_path / "out", "--only", "sentiment")


def test_phrases_are_read_with_their_words():
    tree = texts.parse("(4 (2 A) (4 (3 very) (4 good)))")
    assert tree.words == ["a", "very", "good"]
    assert tree.sentiment == 4
    assert sorted(tree.phrases) == [(0, 1, 2), (0, 3, 4), (1, 2, 3), (1, 3, 4), (2, 3, 4)]


def test_molecules_are_masked_one_token_at_a_time(data):
    folder = data / "rxnmapper_albert" / "albert_heads_8_uspto_all_1310k"
    ids, places, truth = molecules.masked(folder, 7)
    mask = molecules.vocabulary(folder)["[MASK]"]
    assert len(ids) == len(places) == len(truth) == 7
    for text, place in zip(ids, places, strict=True):
        assert (text == mask).nonzero().flatten().tolist() == [place]


def test_the_interval_of_a_mean_is_the_one_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = draw(Score.of(values.tolist())).interval()
    margin = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - margin, abs=0.03)
    assert found.high == pytest.approx(values.mean() + margin, abs=0.03)


def test_pairs_are_drawn_together():
    values = np.random.default_rng(1).normal(0, 100, 50)
    larger, values = Score.of((values + 1).tolist()), Score.of(values.tolist())
    found = draw(larger).minus(draw(values)).interval()
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_samples_of_one_group_are_drawn_together():
    values = [0.0, 1.0, 0.0, 1.0] * 10
    alone = draw(Score([[v] for v in values])).interval()
    # Each group has both, so that whichever groups are drawn the mean is the same.
    pairs = draw(Score([[v] for v in values], groups=[i // 2 for i in range(40)])).interval()
    assert alone.high - alone.low > 0.2
    assert (pairs.low, pairs.high) == pytest.approx((0.5, 0.5))


def test_counts_are_added_up_before_they_are_divided():
    score = Score([[1, 2, 30, 40], [3, 8, 10, 40]], "ratios")
    assert draw(score).value == pytest.approx((4 / 10 + 40 / 80) / 2)


def test_a_correlation_is_numpys():
    x, y = np.random.default_rng(1).normal(size=(2, 30))
    moments = np.stack([x, y, x * x, y * y, x * y], 1).tolist()
    assert draw(Score(moments, "correlation")).value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert draw(Score(moments, "slope")).value == pytest.approx(np.polyfit(x, y, 1)[0])


def test_ties_are_broken_at_random_and_nothing_else_is():
    relevance = torch.zeros(500, 4)
    relevance[:, 2] = 1
    relevance[:, 0] = -1
    ranks = untied(relevance)
    assert (ranks[:, 2] == 3).all()
    assert (ranks[:, 0] == 0).all()
    assert 0.4 < (ranks[:, 1] == 1).double().mean() < 0.6
    assert torch.equal(ranks, untied(relevance))


def test_the_published_order_is_compared():
    published = {"AttentionRollout": 2.0, "AttentionGradCam": 1.0, "TransformerAttribution": 3.0}
    ours = {name: Score.of([value, value]) for name, value in published.items()}
    same = compare("vision", "perturbation", "predicted, negative", ours)
    assert same.rank_correlation.value == 1
    turned = {name: Score.of([-value, -value]) for name, value in published.items()}
    other = compare("vision any/model", "perturbation", "predicted, negative", turned)
    assert other.rank_correlation.value == -1
    assert compare("vision", "segmentation", "mIoU", ours) is None


def test_results_belong_to_their_weights_and_samples():
    model, samples = torch.nn.Linear(2, 2), torch.zeros(4, 3)
    state = state_of(model, samples)
    assert state_of(model, samples.clone()) == state
    assert state_of(model, samples + 1) != state
    assert state_of(model, samples.view(3, 4)) != state
    with torch.no_grad():
        model.bias += 1
    assert state_of(model, samples) != state


def test_models_that_pool_are_drawn(tmp_path):
    pooled.main(["--out", str(tmp_path), "--epochs", "1"])
    height, width, colours = imread(tmp_path / "readouts.png").shape
    assert height > 600
    assert width > 600
    assert colours >= 3
