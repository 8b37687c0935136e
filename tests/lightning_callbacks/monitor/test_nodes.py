"""Two nodes with two processes each, started as by ``torchrun``."""

import importlib
import os
import signal
import time
import warnings
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from captum.attr import Saliency
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from lightning_callbacks.monitor.sharing import Collected
from tests.lightning_callbacks.models import Blobs, classifier
from tests.lightning_callbacks.processes import alone, needs_fork, on_nodes

# A file of their own, so that both run in one process of pytest: each has five.
pytestmark = [needs_fork, pytest.mark.xdist_group("nodes")]


class Dies(Saliency):
    """Ends its process in the last run."""

    def attribute(self, *args, **options):
        module = self.forward_func
        if module.global_rank == 2 and module.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().attribute(*args, **options)


def train(rank, folder, watched, method, resumed=False):
    """One process of a training."""
    if method is Dies:
        # The first process waits less long for what never comes.
        Collected.finish = partialmethod(Collected.finish, patience=3.0)
    pl = importlib.import_module("pytorch_lightning")
    monitor = AttributionMonitor(
        {"grad": method}, ("label",), num_samples=6, share_samples=True, scale="first"
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        num_nodes=2,
        strategy="ddp",
        max_epochs=3 if resumed else 2,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        logger=pl.loggers.TensorBoardLogger(folder, name="more" if resumed else "", version=""),
        callbacks=[monitor] if watched else [],
    )
    assert (trainer.world_size, trainer.node_rank, trainer.local_rank) == (4, rank // 2, rank % 2)
    module = classifier(pl)
    data = DataLoader(Blobs(16, 1), batch_size=2), DataLoader(Blobs(9, 2), batch_size=2)
    if resumed:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The samples that are explained")
            trainer.fit(module, *data, ckpt_path=f"{folder}/last.ckpt")
    else:
        trainer.fit(module, *data)
        if method is Saliency:
            trainer.save_checkpoint(f"{folder}/last.ckpt")
    torch.save(monitor.state_dict(), f"{folder}/state_{rank}_{resumed}.pt")
    torch.save(module.state_dict(), Path(folder) / f"{watched}_{rank}.pt")
    torch.distributed.destroy_process_group()


def timed(*arguments):
    """To be run in a process of its own."""
    start = time.monotonic()
    return on_nodes(train, 2, 2, *arguments), time.monotonic() - start


def pictures(folder):
    log = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: len(log.Images(tag)) for tag in log.Tags()["images"]}


@pytest.mark.slow
def test_nodes_share_the_samples_and_train_as_ever(tmp_path):
    for watched in (True, False):
        codes, _ = alone(timed, str(tmp_path / str(watched)), watched, Saliency)
        assert codes == [0] * 4
    assert pictures(tmp_path / "True") == {
        f"attribution_sample_{number}/label/grad": 2 for number in range(6)
    }
    for rank in range(4):
        one, other = (torch.load(tmp_path / f"{w}" / f"{w}_{rank}.pt") for w in (True, False))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(tmp_path.rglob(".attribution_*")), "the mailbox is removed"

    # The checkpoint of the first process has what all know, and each goes on from there.
    checkpoint = torch.load(tmp_path / "True" / "last.ckpt", weights_only=False)
    (state,) = (s for key, s in checkpoint["callbacks"].items() if "AttributionMonitor" in key)
    assert sorted(state["samples"]) == [str(number) for number in range(6)]
    assert set(state["scales"]) == set(pictures(tmp_path / "True"))
    assert {since for _, since, _ in state["scales"].values()} == {2}
    codes, _ = alone(timed, str(tmp_path / "True"), True, Saliency, True)
    assert codes == [0] * 4
    for rank in range(4):
        after = torch.load(tmp_path / "True" / f"state_{rank}_True.pt")
        assert after == {**state, "validation_runs": 3}


@pytest.mark.slow
def test_a_process_that_dies_while_it_explains_leaves_nobody_waiting(tmp_path):
    codes, seconds = alone(timed, str(tmp_path), True, Dies)
    assert codes == [0, 0, -signal.SIGKILL, 0]
    assert seconds < 60
    found = pictures(tmp_path)
    assert found.pop("attribution_sample_2/label/grad") == 1
    assert set(found.values()) == {2}
