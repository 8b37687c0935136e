"""The benchmark runs and reports; how fast things are is no matter of tests."""

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed.py"


def test_each_method_is_timed_at_each_batch_size(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    model = ["--model", "test_vit", "--device", "cpu"]
    arguments = [*model, "--batch-sizes", "1", "2", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")

    written = json.loads(out.read_text())
    assert written["setting"]["model"] == "test_vit"
    assert len(written["results"]) == 2 * 10
    assert all(result["seconds_per_image"] > 0 for result in written["results"])
    (reference,) = {r["ratio"] for r in written["results"] if r["method"] == "forward + backward"}
    assert reference == 1

    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 10
    assert {line.count("|") for line in table} == {6}
