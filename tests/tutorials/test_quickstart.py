"""The quickstart, run as a user runs it, only shorter."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).parents[2] / "tutorials" / "quickstart.py"
METHODS = [
    "TransformerAttribution",
    "GenericAttentionRelevance",
    "ConservativeLRP",
    "AttnLRP",
    "GIM",
    "LeGrad",
    "AttentionGradCam",
    "PartialLRP",
    "Full LRP",
    "RawAttention",
    "AttentionRollout",
    "Captum's IntegratedGradients",
]


@pytest.fixture(scope="module")
def quickstart():
    return runpy.run_path(str(SCRIPT), run_name="quickstart")


@pytest.mark.slow
def test_a_short_run_prints_the_table_and_writes_the_figure_and_the_log(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "quickstart"
    sizes = ["--epochs", "2", "--mosaics", "256", "--held-out", "64"]
    arguments = [*sizes, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")

    printed, logged = capsys.readouterr()
    assert "\r" not in printed + logged, "a file gets plain lines"
    assert len((printed + logged).splitlines()) < 150
    assert [line[:8] for line in printed.splitlines()[:2]] == ["epoch 1:", "epoch 2:"]
    for method in METHODS:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
        share, milliseconds = line.split()[-2:]
        assert 0 <= float(share.rstrip("%")) <= 100
        assert float(milliseconds) > 0
    assert f"tensorboard --logdir {out}" in printed

    figure = imread(out / "explanations.png")
    assert figure.shape[1] > figure.shape[0] > 500

    log = EventAccumulator(str(out / "version_0"), size_guidance={"images": 0}).Reload()
    images = [tag for tag in log.Tags()["images"] if tag.startswith("attribution_sample_")]
    assert len(images) == 4 * 2 * 2, "samples, class slots, methods"
    assert {len(log.Images(tag)) for tag in images} == {2}, "one per epoch"


def test_no_digit_is_both_trained_on_and_held_out(quickstart):
    (train, _), (held_out, _) = quickstart["split_digits"]()
    # The digits in the middle of the nine positions are the unshifted ones.
    unshifted = train.view(9, -1, 8, 8)[4]
    assert len(unshifted) + len(held_out) == 1797
    assert torch.cdist(unshifted.flatten(1), held_out.flatten(1)).min() > 0


def test_each_cell_shows_its_digit_and_no_digit_comes_twice(quickstart):
    values = torch.arange(10.0)[:, None, None].expand(10, 8, 8)
    mosaics = quickstart["Mosaics"].draw(values, torch.arange(10), count=50, seed=0)
    corners = mosaics.images[:, 0, ::8, ::8].flatten(1)
    assert torch.equal(corners.long(), mosaics.digits)
    assert (mosaics.labels.sum(1) == 4).all()
    assert mosaics.labels.gather(1, mosaics.digits).all()


def test_share_in_cell(quickstart):
    maps = torch.zeros(3, 16, 16)
    maps[0, :8, 8:] = 1  # all of it in the top right cell
    maps[1] = 1  # everywhere alike
    maps[2] = -1  # nothing positive
    shares = [quickstart["share_in_cell"](maps[[i]], torch.tensor([1])) for i in range(3)]
    assert shares == [1, 0.25, 0]
