"""Kills the explanation of a data set with SIGKILL, again and again, and counts what is there.

    python -m benchmarks.kill_and_resume

Each run has another number of processes than the one before, and is killed while it writes: all of
its processes, or one of them. The last may finish. Every sample must be there once, and be what the
method says of it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_transformer import AttnLRP
from lightning_callbacks import ExplainerModule, RelevanceDataset, RelevanceWriter
from lightning_callbacks.data_sets.index import shards_of
from lightning_callbacks.data_sets.manifest import CHECKSUM, read_manifest
from lightning_callbacks.data_sets.shards import check_shard

SAMPLES, TOKENS, WIDTH, BATCH = 203, 6, 16, 2


class Encoder(nn.Module):
    """A small Transformer."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(x).mean(1))
        return scores


@dataclass(frozen=True)
class Run:
    """What a run has left.

    Attributes:
        processes: How many processes it had.
        killed: What was killed of it.
        seconds: How long it ran, from the first shard that it wrote.
        unfinished: Files that were being written when it ended.
        shards: Complete shards in the folder.
        done: Samples in the folder.
        twice: Samples that are in the folder more than once.
    """

    processes: int
    killed: str
    seconds: float
    unfinished: int
    shards: int
    done: int
    twice: int


def subject() -> tuple[nn.Module, TensorDataset]:
    """The model and the data set, the same ones in each process."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Encoder().eval()
    inputs = torch.randn(SAMPLES, TOKENS, WIDTH, generator=generator)
    return model, TensorDataset(inputs, torch.zeros(SAMPLES).long())


def predict(folder: Path, processes: int) -> None:
    """Explains what is missing."""
    # A group of its own, so that a kill reaches the trainer's processes and nobody else.
    os.setsid()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, dataset = subject()
    writer = RelevanceWriter(folder, every_n_batches=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        callbacks=[writer],
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    loader = DataLoader(dataset, batch_size=BATCH, sampler=writer.remaining(dataset))
    trainer.predict(ExplainerModule(model, AttnLRP), loader, return_predictions=False)


def run(folder: Path, processes: int, shards: int = 0, *, alone: bool = False) -> Run:
    """Starts a run, and kills it while it writes.

    Args:
        folder: The writer's folder.
        processes: How many processes the trainer has.
        shards: Kill when it has written so many; 0 lets it finish.
        alone: Kill only the last of the trainer's processes.

    Returns:
        What it has left.
    """
    before = len(_shards(folder))
    # Forked from a fresh process: of this one it isn't known what it has done to a GPU.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.kill_and_resume"])
    process = context.Process(target=predict, args=(folder, processes))
    process.start()
    assert process.pid is not None
    try:
        _wait(lambda: _ended(process) or len(_shards(folder)) > before)
        began = time.perf_counter()
        killed = "nothing"
        if shards:
            _wait(lambda: len(_shards(folder)) >= before + shards and _unfinished(folder), process)
            killed = "one process" if alone else "all processes"
            if alone:
                os.kill(_children(process.pid)[-1], signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGKILL)
        _wait(lambda: _ended(process))
    finally:
        if not _ended(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    manifest = (read_manifest(folder) or {}).get(CHECKSUM, "")
    columns = [check_shard(path, manifest) for path in _shards(folder)]
    ids = [i for column in columns for i in column["sample_id"].tolist()]
    return Run(
        processes,
        killed,
        time.perf_counter() - began,
        len(_unfinished(folder)),
        len(_shards(folder)),
        len(set(ids)),
        sum(count > 1 for count in Counter(ids).values()),
    )


def kill_and_resume(folder: Path) -> list[Run]:
    """Explains the data set in four runs, of which three are killed.

    Args:
        folder: The writer's folder.

    Returns:
        What each run has left.
    """
    return [
        run(folder, 2, 12),
        run(folder, 1, 9),
        run(folder, 2, 14, alone=True),
        run(folder, 3),
    ]


def largest_error(folder: Path) -> float:
    """How far the written maps are from what the method says of the whole data set at once."""
    model, dataset = subject()
    expected = AttnLRP(model).attribute(dataset.tensors[0], target=_predicted(model, dataset))
    found = torch.stack([item.attributions["input_0"] for item in RelevanceDataset(folder)])
    return float((found - expected).abs().max() / expected.abs().max())


def _predicted(model: nn.Module, dataset: TensorDataset) -> Tensor:
    with torch.no_grad():
        predicted: Tensor = model(dataset.tensors[0]).argmax(1)
    return predicted


def _shards(folder: Path) -> list[Path]:
    return list(shards_of(folder).glob("*.safetensors"))


def _unfinished(folder: Path) -> list[Path]:
    return list(shards_of(folder).glob(".*.unfinished"))


def _children(pid: int) -> list[int]:
    """The processes that a process has started, the oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def _ended(process: BaseProcess) -> bool:
    return process.exitcode is not None


def _wait(condition: Callable[[], Any], process: BaseProcess | None = None) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end or (process is not None and _ended(process)):
            raise TimeoutError("The run didn't get so far, or not within a minute.")
        time.sleep(0.0005)


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| processes | killed | seconds | unfinished files | shards | samples | twice |")
        print("|--:|---|--:|--:|--:|--:|--:|")
        for r in kill_and_resume(folder):
            print(
                f"| {r.processes} | {r.killed} | {r.seconds:.2f} | {r.unfinished} | {r.shards} "
                f"| {r.done} of {SAMPLES} | {r.twice} |"
            )
        ids = RelevanceDataset(folder).sample_ids
        print(f"\nIn the index: {len(ids)} samples, {len(set(ids.tolist()))} of them different.")
        print(f"Largest relative error of a value: {largest_error(folder):.1e}")


if __name__ == "__main__":
    main()
