"""The benchmark of accelerators runs in parts, and goes on where it stopped."""

import json

import pytest
import torch

from benchmarks.accelerator import units
from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.measure import measured
from benchmarks.cost.contenders import METHODS, REFERENCE
from benchmarks.cost.subjects import SUBJECTS

SMALL = "--device cpu --dtypes float32 --models test_vit --batch-sizes 1 2 --repeats 1"
SHORT = "--tokens 32 --monitored test_vit --monitor-batch-size 2 --monitor-steps 1"


@pytest.fixture
def run(tmp_path, capsys):
    def run(*arguments):
        options = [*SMALL.split(), *SHORT.split(), "--results", str(tmp_path), *arguments]
        main(options)
        (file,) = tmp_path.glob("*.json") if any(tmp_path.iterdir()) else (None,)
        return file and json.loads(file.read_text(encoding="utf-8"))[
            "units"
        ], capsys.readouterr().out

    return run


def test_it_goes_on_where_it_stopped(run, monkeypatch):
    found, said = run("--parts", "time", "--minutes", "0")
    assert found is None
    assert "2 units are left" in said

    calls = []

    def counted(*args, **options):
        calls.append(args)
        return [{"ratio": 1.5}]

    monkeypatch.setattr(units, "measured", counted)
    found, said = run("--parts", "time", "--batch-sizes", "2")
    assert list(found) == ["time/test_vit/float32/2"]
    found, said = run("--parts", "time")
    assert list(found) == ["time/test_vit/float32/2", "time/test_vit/float32/1"]
    assert len(calls) == 2
    assert "| 1.5 |" in said

    def fails(*args, **options):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(units, "measured", fails)
    found, _ = run("--parts", "long")
    assert "no kernel" in found["long/long_encoder/32"][0]["error"]
    monkeypatch.setattr(units, "measured", lambda *args, **_: [{"ratio": 2.5}])
    found, _ = run("--parts", "long")
    assert found["long/long_encoder/32"] == [{"ratio": 2.5}]
    assert len(found) == 4
    found, said = run("--show")
    assert said.count("### ") == 2


def test_time_and_memory_of_all_methods(run):
    found, said = run("--parts", "time", "--batch-sizes", "2")
    (rows,) = found.values()
    ratios = {row["contender"]: row["ratio"] for row in rows}
    assert ratios.keys() > METHODS.keys() | {"Captum InputXGradient", "Captum LayerGradCam"}
    assert ratios[REFERENCE] == 1
    assert all(row["of memory"] > 0 and row["seconds"] > 0 for row in rows)
    assert len([line for line in said.splitlines() if line.startswith("|")]) == 2 + len(rows)


def test_captured_calls_stand_beside_the_method_itself(run, monkeypatch):
    monkeypatch.setattr(units, "SEVERAL_TARGETS", ("AttnLRP",))
    found, _ = run("--parts", "captured", "--batch-sizes", "2", "--ways", "captured", "CUDA graphs")
    rows = {row["contender"]: row for row in found["captured/test_vit/float32/2/AttnLRP"]}
    assert list(rows) == [REFERENCE, "AttnLRP", "AttnLRP, captured"]
    assert rows["AttnLRP, captured"]["first call (s)"] > rows["AttnLRP, captured"]["seconds"] > 0


def test_the_other_parts(run):
    found, _ = run("--parts", "long", "monitor")
    assert {unit.split("/")[0] for unit in found} == {"long", "monitor"}
    assert not [row for rows in found.values() for row in rows if "error" in row]
    (row,) = found["monitor"]
    assert row["steps"] > 0
    contenders = [row["contender"] for row in found["long/long_decoder/32"]]
    assert contenders[0] == REFERENCE
    assert len(contenders) == 4


def test_what_fails_is_named_and_the_others_are_measured(monkeypatch):
    subject = SUBJECTS["test_vit"]({"device": torch.device("cpu"), "dtype": torch.float32})

    def full(*args, **options):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    method = METHODS["GenericAttentionRelevance"]
    monkeypatch.setattr(method, "attribute", full)
    rows = measured(subject, 1, ("GenericAttentionRelevance", "ConservativeLRP"))
    names = [row["contender"] for row in rows]
    assert names == [REFERENCE, "ConservativeLRP", "GenericAttentionRelevance"]
    assert rows[2]["failed"] == "OutOfMemoryError: Tried to allocate 20 GiB"


def test_the_tests_of_gpus_run_in_a_process_of_their_own(run):
    found, _ = run("--parts", "tests", "--tests", "tests/benchmarks/test_cost.py")
    (row,) = found["tests"]
    assert "deselected" in row["summary"]
