"""Colours have the same scale in all steps, and the scale is shown."""

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from torch import nn

from captum_transformer.visualization import panel, token_strip
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.loggers import Publisher
from lightning_callbacks.monitor.history import History, Shown
from lightning_callbacks.samples.classes import Predictions
from tests.lightning_callbacks.models import CLASSES, classifier, loaders
from tests.lightning_callbacks.runs import decode, fit, read, steps

WEAK, STRONG = torch.tensor([[0.0, -1e-5], [3e-5, 1e-5]]), torch.tensor([[0.0, 0.0], [7e-3, 7e-3]])


def colors(kind, maps, options=None):
    history = History()
    return [
        history.colors("tag", values, kind, step, options or {})
        for step, values in enumerate(maps, start=1)
    ]


def test_each_kind_of_scale():
    own = colors("own", [WEAK, STRONG, WEAK])
    assert [each.scale for each in own] == pytest.approx([3e-5, 7e-3, 3e-5])
    first = colors("first", [WEAK, STRONG, WEAK])
    assert [each.scale for each in first] == pytest.approx([3e-5] * 3)
    said = "scale of the first run, step 1"
    assert [each.note for each in first] == [said, f"{said}; here up to 0.007", said]
    running = colors("running", [WEAK, STRONG, WEAK])
    assert [each.scale for each in running] == pytest.approx([3e-5, 7e-3, 7e-3])
    assert [each.note[-1] for each in running] == ["1", "2", "2"]
    share = colors("share", [WEAK, 100 * WEAK])
    assert share[0].factor == pytest.approx(100 * share[1].factor)
    assert (WEAK * share[0].factor).abs().mean() == pytest.approx(1)
    assert [each.scale for each in share] == [4.0, 4.0], "all of it in one of four values"
    assert [each.note for each in share] == [
        "× the mean |relevance|, 1.2e−05",
        "× the mean |relevance|, 0.0012",
    ]
    for kind in ("first", "running", "share"):
        # Colours don't change their meaning because no value happens to be negative.
        assert [each.sign for each in colors(kind, [WEAK, STRONG])] == ["signed"] * 2
        assert [each.sign for each in colors(kind, [STRONG, WEAK])] == ["positive", "signed"]
    fixed = colors("share", [WEAK, STRONG], {"scale": 0.5})
    assert [(each.scale, each.factor, each.note) for each in fixed] == [(0.5, 1.0, "")] * 2


def test_maps_of_zeros():
    for kind in ("share", "first", "running", "own"):
        (found,) = colors(kind, [torch.zeros(2, 2)])
        assert found.factor == 1.0
        assert found.scale > 0


def test_the_first_and_the_last_stand_beside_the_present():
    history = History()
    maps = [
        Shown(step, name, torch.full((2, 2), step))
        for step, name in zip((8, 16, 24), "aba", strict=True)
    ]
    columns = [history.beside("tag", each) for each in maps]
    assert list(columns[0]) == ["first", "last", "now: step 8"]
    assert list(columns[2]) == ["first: step 8", "last: 16 → b", "now: step 24"]
    assert [values[0, 0].item() for values in columns[2].values()] == [8, 16, 24]
    assert list(columns[0].values())[:2] == [None, None]
    shorter = history.beside("tag", Shown(32, "a", torch.zeros(1, 2)))
    assert [values is None for values in shorter.values()] == [True, True, False]


class Growing(Saliency):
    """Maps that are a hundred times as strong each time."""

    factor = 1e-4

    def attribute(self, inputs, **options):
        Growing.factor *= 100
        return super().attribute(inputs, **options) * Growing.factor


def pictures(pl, options, **more):
    Growing.factor = 1e-4
    monitor = AttributionMonitor(
        {"growing": Growing}, (0,), num_samples=1, on_error="raise", heatmap={"quantile": 1}, **more
    )
    data = loaders()
    trainer = fit(pl, options, monitor, frozen(pl), data, max_epochs=3)
    images = read(trainer).Images("attribution_sample_0/class_0/growing")
    assert steps(images) == [8, 16, 24]
    return [decode(image) for image in images], monitor


def frozen(pl):
    torch.manual_seed(0)
    module = classifier(pl, nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)))
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    return module


def overlay_of(picture):
    """Without the caption, the numbers and the note."""
    top = picture.shape[0] - 38 - 10 - 256
    return picture[top : top + 256, 276 : 276 + 256].astype(int)


def test_pictures_of_a_training(pl, trainer_options):
    own, _ = pictures(pl, trainer_options, scale="own")
    assert all((overlay_of(picture) == overlay_of(own[0])).all() for picture in own)
    first, monitor = pictures(pl, trainer_options, scale="first")
    # Of a hundred times as much relevance nearly all is beyond the scale.
    assert np.abs(overlay_of(first[1]) - overlay_of(first[0])).mean() > 20
    assert all(picture.shape == first[0].shape for picture in first)
    state = monitor.state_dict()
    again = AttributionMonitor({"growing": Growing}, (0,), scale="first")
    again.load_state_dict(state)
    assert again.state_dict()["scales"] == state["scales"] != {}
    running, _ = pictures(pl, trainer_options, scale="running")
    assert all((overlay_of(picture) == overlay_of(own[0])).all() for picture in running)
    share, _ = pictures(pl, trainer_options)
    assert all((overlay_of(picture) == overlay_of(share[0])).all() for picture in share)
    rows, _ = pictures(pl, trainer_options, scale="first", show_history=True)
    assert all(row.shape == rows[0].shape for row in rows)
    assert rows[0].shape[1] == first[0].shape[1] + 2 * 266


def test_several_maps_in_one_picture():
    image, one = torch.rand(3, 8, 8), torch.rand(8, 8)
    both = panel(image, {"a": one, "b": 3 * one}, height=64, scale=3.0)
    alone = [panel(image, values, height=64, scale=3.0) for values in (one, 3 * one)]
    left, top = 10 + 64 + 10, 10
    for number, picture in enumerate(alone):
        expected = picture[top : top + 64, left : left + 64]
        start = left + number * 74
        assert (both[top + 19 : top + 19 + 64, start : start + 64] == expected).all()
    assert panel(image, {"a": one, "b": None}, height=64).shape == both.shape
    tokens, values = ["a", "fine", "film"], torch.tensor([0.1, 0.9, 0.2])
    strips = token_strip(tokens, {"a": values, "b": 2 * values})
    assert strips.shape[0] > token_strip(tokens, values).shape[0]


def test_slots_of_several_labels_do_not_repeat_each_other():
    probabilities = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.8, 0.9]])
    several = Predictions(probabilities, torch.tensor([[1.0, 1, 0], [1, 0, 0]]))
    assert several.of_slots(("label", "predicted")) == {"label": [0, 0], "predicted": [1, 2]}
    assert several.of_slots(("predicted", 2, 0)) == {"predicted": [1, 1], 2: [2, 2], 0: [0, 0]}
    single = Predictions(probabilities, torch.tensor([0, 1]))
    assert single.of_slots(("label", "predicted")) == {"label": [0, 1], "predicted": [0, 2]}


def test_each_picture_has_a_row_with_what_it_shows(pl, trainer_options, monkeypatch):
    entries, publish = [], Publisher.pictures

    def seen(self, part):
        entries.append(part)
        publish(self, part)

    monkeypatch.setattr(Publisher, "pictures", seen)
    names = ["cat", "dog", "emu"]
    monitor = AttributionMonitor({"saliency": Saliency}, num_samples=2, class_names=names)
    fit(pl, trainer_options, monitor)
    rows = entries[-1].tables["attribution/explanations"]
    assert [(row["sample"], row["slot"]) for row in rows] == [
        *((0, "label"), (1, "label"), (0, "predicted"), (1, "predicted"))
    ]
    assert {row["tag"] for row in rows} == set(entries[-1].images)
    assert rows[0]["explained"] == rows[0]["label"] in ("cat", "dog", "emu")
    assert rows[2]["explained"] == rows[2]["predicted"]
    assert rows[2]["probability"] == rows[2]["likely"] > 1 / 3
