"""Pictures, texts and numbers are read back from each logger."""

import contextlib
import errno
import io
import json
import re
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from captum.attr import Saliency
from matplotlib.image import imread
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from captum_transformer import GenericAttentionRelevance
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.loggers import PNGWriter
from lightning_callbacks.loggers.tensorboard import add_picture
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.loggers.tensorboard_page import ask, serving
from tests.lightning_callbacks.runs import METHODS, decode, fit, read, steps
from tests.lightning_callbacks.samples.named import bert, reader, texts


@pytest.mark.both
def test_no_logger(pl, trainer_options):
    with pytest.raises(MisconfigurationException, match="no logger"):
        fit(pl, trainer_options, AttributionMonitor(METHODS), logger=False)
    exceptions = pl.utilities.exceptions
    with pytest.raises(exceptions.MisconfigurationException):
        fit(pl, trainer_options, AttributionMonitor(METHODS), logger=False)


@pytest.mark.both
def test_a_logger_without_images_gets_files(pl, trainer_options, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="csv")
    monitor = AttributionMonitor(METHODS, num_samples=2, on_error="raise")
    with pytest.warns(UserWarning, match="PNG files") as caught:
        fit(pl, trainer_options, monitor, logger=logger)
    assert len([w for w in caught if "PNG files" in str(w.message)]) == 1
    files = sorted(Path(logger.log_dir).rglob("*.png"))
    assert len(files) == 2 * 2 * 2 * 2
    assert files[0].relative_to(logger.log_dir).as_posix() == (
        "attribution_sample_0/label/integrated/step_00000008.png"
    )
    assert (imread(files[0])[..., :3] * 255).std() > 1
    metrics = (Path(logger.log_dir) / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "attribution/rank_correlation/saliency" in metrics


def test_files_are_not_needed_beside_a_logger_with_images(pl, trainer_options, tmp_path):
    both = [pl.loggers.TensorBoardLogger(tmp_path, name="t"), pl.loggers.CSVLogger(tmp_path, "c")]
    trainer = fit(
        pl,
        trainer_options,
        AttributionMonitor(METHODS, num_samples=1, on_error="raise"),
        logger=both,
    )
    assert not list(tmp_path.rglob("*.png"))
    assert read(trainer).Tags()["images"]


def watch(pl, options, logger, **more):
    """Both images and texts, logged by one logger beside TensorBoard."""
    board = pl.loggers.TensorBoardLogger(options["default_root_dir"], name="board")
    monitor = AttributionMonitor(
        {"saliency": Saliency}, ("label",), num_samples=1, on_error="raise", layers=["model.1"]
    )
    trainer = fit(pl, options, monitor, logger=[board, logger], **more)
    return read(trainer)


TAG = "attribution_sample_0/label/saliency"


@pytest.mark.both
def test_tensorboard(pl, trainer_options):
    logger = pl.loggers.TensorBoardLogger(trainer_options["default_root_dir"], name="other")
    events = watch(pl, trainer_options, logger)
    assert steps(events.Images(TAG)) == [8, 16]
    histograms = events.Histograms("attribution/layers/model.1/saliency")
    assert steps(histograms) == [8, 16]
    assert histograms[0].histogram_value.num == 8 * 8 * 8
    assert "custom_scalars__config__" not in events.Tags()["tensors"], "that is the user's"
    charts = EventAccumulator(f"{logger.log_dir}/attribution_charts").Reload()
    layout = charts.SummaryMetadata("custom_scalars__config__")
    assert layout.plugin_data.plugin_name == "custom_scalars"
    assert len(charts.Tensors("custom_scalars__config__")) == 1, "once"


@pytest.mark.slow
def test_charts_of_the_user_and_of_two_monitors_stand_beside_each_other(
    pl, trainer_options, tmp_path
):
    class Own(pl.Callback):
        def on_fit_start(self, trainer, module):
            trainer.logger.experiment.add_custom_scalars(
                {"mine": {"loss": ["Multiline", ["loss"]]}}
            )

    monitors = [AttributionMonitor(METHODS, num_samples=1, prefix=name) for name in ("one", "two")]
    fit(pl, trainer_options, monitors[0], callbacks=[Own(), *monitors])
    with serving(tmp_path, runs=3) as server:
        layout = ask(server, "data/plugin/custom_scalars/layout")
    assert {category["title"] for category in layout["category"]} == {"mine", "one", "two"}


@pytest.mark.both
@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger"])
def test_remote_folders(pl, trainer_options, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    folder = f"memory://{tmp_path.name}"
    logger = getattr(pl.loggers, kind)(folder, name="run")
    monitor = AttributionMonitor(
        {"saliency": Saliency}, ("label",), num_samples=1, on_error="raise"
    )
    files_instead = pytest.warns(UserWarning, match=f"PNG files to {folder}")
    with files_instead if kind == "CSVLogger" else contextlib.nullcontext():
        fit(pl, trainer_options, monitor, logger=logger)
    files = fsspec.filesystem("memory")
    if kind == "CSVLogger":
        found = files.glob(f"/{tmp_path.name}/**/*.png")
        assert [path.rpartition("/")[2] for path in found] == [
            *("step_00000008.png", "step_00000016.png")
        ]
        with files.open(found[0]) as file:
            assert (imread(file)[..., :3] * 255).std() > 1
    else:
        (path,) = files.glob(f"/{tmp_path.name}/run/version_0/events*")
        (tmp_path / "events.out.tfevents.0").write_bytes(files.cat_file(path))
        events = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
        assert steps(events.Images(TAG)) == [8, 16]
    assert not list(tmp_path.glob("memory*")), "nothing lands in a local folder of that name"


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    writer = PNGWriter(tmp_path)
    picture = np.full((4, 4, 3), 9, np.uint8)
    writer.add_image("a", picture, 1)
    before = (tmp_path / "a/step_00000001.png").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="No space"):
        writer.add_image("a", picture + 1, 1)
    assert [path.read_bytes() for path in (tmp_path / "a").iterdir()] == [before]


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="files have ASCII names")
def test_each_tag_has_a_file_of_its_own_whose_name_every_system_takes(tmp_path):
    tags = ["gamma: 1", "gamma; 1", "gamma_ 1", "a/../b", "a/b", "con", "Aux.b", "d.", "d ", "é x"]
    writer = PNGWriter(tmp_path)
    for number, tag in enumerate(tags):
        writer.add_image(tag, np.full((4, 4, 3), number, np.uint8), 1)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")]
    assert sorted(round(imread(tmp_path / path)[0, 0, 0] * 255) for path in files) == [*range(10)]
    assert {path.parent.as_posix() for path in files} >= {"gamma_ 1", "a/b", "é x"}
    for part in (part for path in files for part in path.parent.parts):
        assert not re.search(r'[<>:"|?*\\]|[. ]$|^(con|aux)\b', part, re.IGNORECASE), part


def half_written(path, content):
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_texts_have_tables_of_exact_values(pl, trainer_options):
    monitor = AttributionMonitor(
        {"saliency": GenericAttentionRelevance},
        ("label",),
        num_samples=2,
        on_error="raise",
    )
    trainer = fit(pl, trainer_options, monitor, reader(pl, bert(), "signature"), (texts(), texts()))
    events = read(trainer)
    (first, second) = events.Tensors(f"{TAG}/text_summary")
    table = first.tensor_proto.string_val[0].decode().splitlines()
    assert table[0] == "| # | token | attribution |"
    ids = texts().dataset[0]["input_ids"].tolist()
    assert [line.split("|")[2].strip() for line in table[2:]] == [str(i) for i in ids]
    assert second.step == 4


@pytest.mark.both
@pytest.mark.parametrize("store", [pytest.param("sqlite", marks=pytest.mark.slow), "files"])
def test_mlflow(pl, trainer_options, tmp_path, store, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")
        pytest.importorskip("alembic")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"sqlite:///{tmp_path}/runs.db" if store == "sqlite" else f"file:{tmp_path}/runs"
    logger = pl.loggers.MLFlowLogger(
        tracking_uri=uri, artifact_location=f"file:{tmp_path}/artifacts"
    )
    events = watch(pl, trainer_options, logger)
    client = mlflow.MlflowClient(uri)
    images = [
        file.path
        for file in client.list_artifacts(logger.run_id, "images")
        if file.path.endswith(".png")
    ]
    assert len(images) == 2
    assert all(re.search("attribution_sample_0.label.saliency", path) for path in images)
    (last,) = (path for path in images if re.search(r"step\W16\W", path))
    # Read where it lies: old versions can't download what they have named themselves.
    (stored,) = (tmp_path / "artifacts").rglob(Path(last).name)
    assert np.array_equal((imread(stored)[..., :3] * 255).round(), decode(events.Images(TAG)[-1]))
    history = client.get_metric_history(logger.run_id, "attribution/rank_correlation/saliency")
    assert [entry.step for entry in history] == [16]


@pytest.mark.both
@pytest.mark.slow
def test_wandb_offline(pl, trainer_options, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True, project="test")
    try:
        events = watch(pl, trainer_options, logger)
        folder = Path(logger.experiment.dir)
        summary = dict(logger.experiment.summary)
    finally:
        wandb.finish()
    assert summary["attribution/rank_correlation/saliency"] == pytest.approx(
        events.Scalars("attribution/rank_correlation/saliency")[0].value
    )
    assert summary["trainer/global_step"] >= 15
    files = sorted((folder / "media" / "images" / "attribution_sample_0").rglob("*.png"))
    assert len(files) == 2
    pictures = [(imread(file)[..., :3] * 255).round() for file in files]
    last = decode(events.Images(TAG)[-1])
    assert any(np.array_equal(picture, last) for picture in pictures)
    assert summary["attribution/layers/model.1/saliency"]["_type"] == "histogram"
    (caption,) = summary[TAG]["captions"]
    assert caption.startswith("saliency → ")
    table = summary["attribution/explanations"]
    assert table["_type"] == "table-file"
    stored = json.loads(Path(folder, table["path"]).read_text(encoding="utf-8"))
    assert stored["columns"] == [
        *("step", "sample", "slot", "method", "input"),
        *("label", "predicted", "likely", "explained", "probability", "picture"),
    ]
    (row,) = stored["data"]
    assert row[:5] == [16, 0, "label", "saliency", "input_0"]


def test_a_writer_gets_a_picture_as_it_would_encode_it(tmp_path):
    picture = torch.randint(256, (6, 9, 3), dtype=torch.uint8).numpy()
    with SummaryWriter(str(tmp_path)) as writer:
        add_picture(writer, "ours", picture, 3)
        writer.add_image("its own", picture, 3, dataformats="HWC")
    events = EventAccumulator(str(tmp_path)).Reload()
    ours, own = events.Images("ours")[0], events.Images("its own")[0]
    assert (ours.step, ours.width, ours.height) == (own.step, own.width, own.height)
    for event in (ours, own):
        decoded = Image.open(io.BytesIO(event.encoded_image_string))
        assert (np.asarray(decoded) == picture).all()
