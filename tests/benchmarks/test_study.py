"""The study runs from end to end on tiny random data, and fills its page."""

import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from benchmarks.study import __main__ as program
from benchmarks.study import page, pooled
from benchmarks.study.methods import OF_EACH_VALUE, PAIRS, PATCHING, PIXELS, POOLED, RANDOM
from benchmarks.study.store import SCATTER, state_of
from benchmarks.study.subject import in_one
from benchmarks.study.tasks import patching, readouts
from tests.benchmarks.study_data import METHODS, OF_TEXTS, make_all, run

OF_PICTURES = METHODS | {name + PIXELS for name in (*OF_EACH_VALUE, RANDOM)}


METHODS_OF = (
    dict.fromkeys(("vision", "mosaics", "clothing"), OF_PICTURES)
    | {task.NAME: (OF_PICTURES - {*POOLED}) | {*task.methods} for task in readouts.TASKS}
    | dict.fromkeys(("sentiment-last-token", "lookup", "agreement"), METHODS)
    | {"patching": {*PATCHING}, "similarity": {*PAIRS, RANDOM}}
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_all(folder)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def records(data, out, quick_study):
    return run(data, out, "--epochs", "1", "--seeds", "1")


pytestmark = pytest.mark.usefixtures("quick_study")
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


def test_facts_of_several_models_are_in_one_cell():
    assert in_one(["90.1% of 8", "91.2% of 8", "90.1% of 8"]) == "90.1% / 91.2% / 90.1% of 8"
    assert in_one(["1.5%, 1,234", "2.5%, 1,234"]) == "1.5% / 2.5%, 1,234"
    assert in_one(["the same", "the same"]) == "the same"
    assert in_one(["a b", "a"]) == "a b; a"


def test_the_page_and_the_pictures_are_written(records, out):
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


def test_tasks_that_were_not_run_again_keep_their_tables(records, tmp_path):
    (tmp_path / "docs").mkdir()
    named = ["headlines", "published", *records]
    text = "".join(f"<!-- {name} -->\n\n<!-- end -->\n" for name in named)
    (tmp_path / "docs" / "study.md").write_text(text, encoding="utf-8")
    page.publish(list(records.values()), [], tmp_path)
    before = (tmp_path / "docs" / "study.md").read_text(encoding="utf-8")
    page.publish([records["lookup"]], [], tmp_path)
    assert (tmp_path / "docs" / "study.md").read_text(encoding="utf-8") == before


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="one place for 'vision'"):
        page.filled("<!-- mosaics -->\n\n<!-- end -->", {"vision": "a table"})


def test_the_page_has_a_place_for_each_table():
    text = (page.ROOT / page.PAGE).read_text(encoding="utf-8")
    names = ["headlines", "published", *program.TASKS]
    filled = page.filled(text, {name: f"the table of {name}" for name in names})
    assert all(filled.count(f"\nthe table of {name}\n") == 1 for name in names)


def test_existing_results_are_not_computed_again(records, data, out):
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


def test_results_of_other_samples_are_computed_again(records, data, tmp_path, out):
    (tmp_path / "models").symlink_to(out / "models")
    (tmp_path / "results").mkdir()
    again = ("--epochs", "1", "--seeds", "1", "--only", "sentiment")
    four = run(data, tmp_path, *again)["sentiment"]
    three = run(data, tmp_path, *again, "--samples", "3")
    assert four == records["sentiment"] | {"seconds": four["seconds"]}
    assert three["sentiment"]["metrics"] != four["metrics"]


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
