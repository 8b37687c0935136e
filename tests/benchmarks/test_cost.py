"""The benchmark of cost runs and reports; speed itself is not tested."""

import json
import sys

import pytest
import torch

from benchmarks.cost import __main__ as program
from benchmarks.cost.contenders import METHODS, REFERENCE
from benchmarks.cost.memory import STATUS, peak_bytes, resident_peak_bytes

SMALL = [
    *("--models", "test_vit", "--batch-sizes", "1", "2", "--repeats", "1", "--device", "cpu"),
    *("--sides", "32", "64", "--encoder-tokens", "32", "--decoder-tokens", "32"),
]


def measured(part, tmp_path, monkeypatch):
    arguments = ["cost", "--parts", part, "--results", str(tmp_path), *SMALL]
    monkeypatch.setattr(sys, "argv", arguments)
    program.main()
    return json.loads((tmp_path / f"{part}_cpu_float32.json").read_text(encoding="utf-8"))


def test_each_method_is_timed_at_each_batch_size_and_drawn(tmp_path, monkeypatch):
    written = measured("time", tmp_path, monkeypatch)
    assert written["setting"]["repeats"] == 1
    rows = written["rows"]
    for batch_size in (1, 2):
        ratios = {r["contender"]: r["ratio"] for r in rows if r["batch_size"] == batch_size}
        assert ratios.keys() > METHODS.keys() | {"Captum InputXGradient", "Captum LayerGradCam"}
        assert ratios[REFERENCE] == 1
        assert all(ratio > 0 for ratio in ratios.values())
    assert (tmp_path / "time_cpu_float32.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("part", "rows"), [("memory", 2 * 7), ("long", 2 * 4), ("targets", 4), ("extremes", 7)]
)
def test_the_other_parts_report_ratios(part, rows, tmp_path, monkeypatch, capsys):
    written = measured(part, tmp_path, monkeypatch)
    assert len(written["rows"]) == rows
    assert all(row["ratio"] > 0 for row in written["rows"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + rows


@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's own record")
def test_the_peak_of_the_process_is_what_it_grows_by():
    size = 256 * 2**20
    grown = resident_peak_bytes(lambda: torch.ones(size, dtype=torch.uint8), torch.device("cpu"))
    assert 0.95 * size < grown < 1.1 * size


def test_the_peak_is_what_is_allocated_at_a_time():
    def run():
        for _ in range(3):
            torch.empty(2**20, dtype=torch.uint8)
        return [torch.empty(2**20, dtype=torch.uint8) for _ in range(2)]

    assert peak_bytes(run, torch.device("cpu")) == 2 * 2**20
