"""A disk without room for pictures ends no training, and leaves the training's own log whole."""

import contextlib
import os
import subprocess
import sys
import warnings

import pytest
import pytorch_lightning
from captum.attr import Saliency
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.processes import alone, needs_fork
from tests.lightning_callbacks.runs import fit

pytestmark = [
    needs_fork,
    # What TensorBoard's thread says when it ends.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


def train(folder, *, watched, limit=None):
    """Trains, in a process of its own, and returns warnings and what the training has logged."""
    if limit is not None:
        import resource

        # No file of this process may be larger.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
    }
    monitor = AttributionMonitor({"saliency": Saliency}, num_samples=6)
    callbacks = [monitor] if watched else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(pytorch_lightning, options, monitor, callbacks=callbacks, max_epochs=4)
    logged = EventAccumulator(trainer.logger.log_dir, {"scalars": 0}).Reload()
    losses = [(event.step, event.value) for event in logged.Scalars("val_loss")]
    return [str(w.message) for w in caught if "AttributionMonitor" in str(w.message)], losses


@pytest.mark.slow
def test_a_file_that_can_grow_no_more(tmp_path):
    _, unwatched = alone(train_kwargs, str(tmp_path / "a"), {"watched": False})
    options = {"watched": True, "limit": 150_000}
    said, watched = alone(train_kwargs, str(tmp_path / "b"), options)
    assert len(unwatched) == 4
    assert watched == unwatched
    (message,) = said
    assert "couldn't write to SummaryWriter: OSError" in message
    assert "Training continues" in message


def train_kwargs(folder, options):
    return train(folder, **options)


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"can't mount a file system: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("size", ["200k", pytest.param("6m", marks=pytest.mark.slow)])
def test_a_full_disk(tmp_path, size):
    _, unwatched = alone(train_kwargs, str(tmp_path / "a"), {"watched": False})
    with small_disk(tmp_path / "disk", size) as disk:
        said, watched = alone(train_kwargs, str(disk), {"watched": True})
    assert watched == unwatched
    assert ["bytes left" in message for message in said] == [True]
