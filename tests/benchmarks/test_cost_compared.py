"""Ratios that have changed by more than noise are named."""

import json

import pytest

from benchmarks.cost import compare

SETTING = {"torch": "2.6.0", "threads": 2}


def results(ratios, subject="ViT", batch_size=1, **setting):
    rows = [
        {"subject": subject, "batch_size": batch_size, "contender": name, "ratio": ratio}
        for name, ratio in {"forward + backward": 1.0, **ratios}.items()
    ]
    return {"setting": {**SETTING, **setting}, "rows": rows}


BEFORE = results({"forward": 0.5, "Captum InputXGradient": 1.0, "AttnLRP": 1.2, "GIM": 1.0})


def test_a_ratio_moves_if_it_moves_by_more_than_what_nobody_has_changed():
    quiet = results({"forward": 0.5, "Captum InputXGradient": 1.0, "AttnLRP": 1.4, "GIM": 0.9})
    found = compare.moved("time", BEFORE, quiet)
    assert [(each.what, each.before, each.now) for each in found] == [
        ("ViT, 1, AttnLRP", 1.2, 1.4),
        ("ViT, 1, GIM", 1.0, 0.9),
    ]
    noisy = results({"forward": 0.5, "Captum InputXGradient": 0.8, "AttnLRP": 1.4, "GIM": 0.9})
    assert compare.moved("time", BEFORE, noisy) == []


def test_noise_of_one_model_is_none_of_another():
    def both(noisy, ours):
        first = results({"forward": noisy, "AttnLRP": ours})
        return first | {
            "rows": first["rows"] + results({"forward": 0.5, "GIM": ours}, "Swin")["rows"]
        }

    found = compare.moved("time", both(0.5, 1.0), both(0.7, 1.2))
    assert [each.what for each in found] == ["Swin, 1, GIM"]


def test_bytes_are_counted_and_parts_without_controls_are_trusted_less():
    before, now = (
        {"setting": SETTING, "rows": [{"subject": "ViT", "contender": "GIM", "ratio": r}]}
        for r in (1.0, 1.1)
    )
    assert [each.growth for each in compare.moved("memory", before, now)] == [pytest.approx(1.1)]
    assert compare.moved("targets", before, now) == []


def test_a_run_is_compared_and_what_costs_more_is_the_exit_status(tmp_path, capsys):
    committed, run = tmp_path / "committed", tmp_path / "run"
    now = results({"forward": 0.5, "AttnLRP": 1.5, "New": 1.0}, torch="2.7.0")
    for folder, content in ((committed, BEFORE), (run, now)):
        folder.mkdir()
        (folder / "time_cpu_float32.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("memory_cpu_float32.json", "time_cuda_float32.json"):
        (committed / name).write_text(json.dumps(BEFORE), encoding="utf-8")
    assert compare.main([str(run), "--committed", str(committed)]) == 1
    said = capsys.readouterr().out
    assert "MORE: ViT, 1, AttnLRP: was 1.20, is 1.50 (+25 %)" in said
    assert "torch was 2.6.0, is 2.7.0" in said
    assert "1 ratios are not in the committed results, such as ViT, 1, New" in said
    assert "memory_cpu_float32: not in the run" in said
    assert "cuda" not in said
    assert compare.main([str(committed), "--committed", str(committed)]) == 0
    assert compare.main([str(tmp_path), "--committed", str(committed)]) == 2


def test_the_committed_results_can_be_compared():
    assert compare.main([str(compare.RESULTS)]) == 0
