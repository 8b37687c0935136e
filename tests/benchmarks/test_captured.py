"""The benchmark of captured calls runs, and goes on where it was stopped."""

import json

import timm

from benchmarks import captured
from benchmarks.cost import page


def test_each_method_is_measured_once(tmp_path, monkeypatch, capsys):
    small = {"img_size": 32, "depth": 1, "num_classes": 10}
    made = []

    def model():
        made.append(timm.create_model("vit_tiny_patch16_224", **small))
        return made[-1]

    monkeypatch.setattr(captured, "MODELS", {"one": model, "other": model})
    monkeypatch.setattr(
        captured.timm.data, "resolve_model_data_config", lambda _: {"input_size": (3, 32, 32)}
    )
    options = ["--repeats", "1", "--compile", "--results", str(tmp_path / "found.json")]
    captured.main([*options, "--models", "one"])
    captured.main(options)
    assert len(made) == 2
    part = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [row["subject"] for row in part["rows"]] == ["one"] * 4 + ["other"] * 4
    assert all(row["captured"] > 0 and row["nodes"] > 100 for row in part["rows"])
    shown = page.CAPTURED.format(
        **part["setting"], captured=page.table(part["rows"], page._CAPTURED)
    )
    assert len([line for line in shown.splitlines() if line.startswith("| o")]) == 8
