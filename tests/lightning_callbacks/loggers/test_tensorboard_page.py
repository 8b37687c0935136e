"""What users see: TensorBoard's own server over the quickstart's run, and its page in a browser."""

import io
import re
import runpy
import sys
import urllib.parse
from pathlib import Path

import pytest
import pytorch_lightning
from matplotlib.image import imread

from captum_transformer import GenericAttentionRelevance
from lightning_callbacks import AttributionMonitor
from tests.browser import BROWSERS, Page, browser
from tests.lightning_callbacks.loggers.tensorboard_page import (
    ask,
    at_step,
    get,
    open_cards,
    serving,
)
from tests.lightning_callbacks.runs import fit
from tests.lightning_callbacks.samples.named import bert, reader, texts

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parents[3] / "tutorials" / "quickstart.py"


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory):
    """The quickstart's log and that of a text classifier."""
    folder = tmp_path_factory.mktemp("logs")
    sizes = ["--epochs", "2", "--mosaics", "256", "--held-out", "64"]
    arguments = [*sizes, "--out", str(folder / "mosaics")]
    run = runpy.run_path(str(QUICKSTART), run_name="quickstart")["main"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(QUICKSTART), *arguments])
        # What comes after the training is not in the log.
        patch.setitem(run.__globals__, "explain", lambda *given: {})
        patch.setitem(run.__globals__, "draw_figure", lambda *given: None)
        run()
    monitor = AttributionMonitor(
        {"generic": GenericAttentionRelevance}, num_samples=2, on_error="raise"
    )
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": folder / "texts",
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
    }
    module = reader(pytorch_lightning, bert(), "signature")
    fit(pytorch_lightning, options, monitor, module, (texts(), texts()))
    return folder


@pytest.fixture(scope="module")
def server(log_dir):
    with serving(log_dir, runs=4) as address:
        yield address


def run_named(server, part):
    runs = [run for run in ask(server, "data/runs") if part in run]
    (run,) = [run for run in runs if not run.endswith("_charts")]
    return run


def test_images(server):
    run = run_named(server, "mosaics")
    tags = ask(server, "data/plugin/images/tags")[run]
    ours = [tag for tag in tags if re.fullmatch(r"attribution_sample_\d/\w+/\w+", tag)]
    assert len(ours) == 4 * 2 * 2, "samples, class slots, methods"
    shown = ask(server, "data/plugin/images/images", run=run, tag=ours[0], sample=0)
    assert len(shown) == 2, "a step for each validation"
    assert shown[0]["step"] < shown[1]["step"]
    content = get(server, "data/plugin/images/individualImage", **blob(shown[1]))
    picture = imread(io.BytesIO(content))
    assert picture.shape[1] > picture.shape[0] > 100
    assert picture[..., :3].std() > 0.1


def blob(entry):
    return dict(urllib.parse.parse_qsl(entry["query"]))


def test_scalars(server):
    run = run_named(server, "mosaics")
    tags = ask(server, "data/plugin/scalars/tags")[run]
    ours = [tag for tag in tags if tag.startswith("attribution/rank_correlation/")]
    assert len(ours) == 2
    ((_, step, value),) = ask(server, "data/plugin/scalars/scalars", run=run, tag=ours[0])
    assert step > 0
    assert -1 <= value <= 1


def test_custom_scalars_are_laid_out(server):
    layout = ask(server, "data/plugin/custom_scalars/layout")
    charts = [chart["title"] for category in layout["category"] for chart in category["chart"]]
    assert {"convergence delta", "rank correlation"} <= set(charts)


def test_texts(server):
    run = run_named(server, "texts")
    tag = "attribution_sample_1/label/generic/text_summary"
    entries = ask(server, "data/plugin/text/text", run=run, tag=tag)
    assert [entry["step"] for entry in entries] == [2, 4]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", entries[0]["text"])
    ids = texts().dataset[1]["input_ids"].tolist()
    assert cells[1::3] == [str(number) for number in ids]
    assert all(float(value) >= 0 for value in cells[2::3])


@pytest.mark.skipif(browser() is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_browser_shows_the_heatmaps_as_cards_with_a_slider(server):
    with Page() as page:
        titles = open_cards(page, server, "attribution_sample", 4)
        first, last = (at_step(page, share)[0] for share in (0, 1))
    assert all(title.startswith("attribution_sample_") for title in titles)
    assert first.size == last.size
    assert first.tobytes() != last.tobytes()
