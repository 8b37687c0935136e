"""What `AttributionMonitor` costs: its share of an epoch's time, and where it goes.

    python -m benchmarks.monitor

trains a ViT-S/16 on noise and explains 8 samples x 2 classes x 2 methods in each validation run.
An epoch on noise is short; the table says what share the callback has of longer ones.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
import warnings
from typing import Any

import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.device import best_device, device_name, wait
from captum_transformer import GenericAttentionRelevance, TransformerAttribution
from lightning_callbacks import AttributionMonitor

METHODS = {"chefer": TransformerAttribution, "generic": GenericAttentionRelevance}
SAMPLES, CLASSES = 8, (0, 1)

PARTS = {
    "predict the classes": ("sample_explainer.py", "_predict"),
    "explain": ("explanation.py", "explain"),
    "draw and compare": ("report.py", "add"),
    "write to TensorBoard": ("log.py", "add"),
    "save and restore the model's state": ("isolation.py", "isolated"),
}
"""What the time is spent on, and the function that spends it."""


class Classifier(pl.LightningModule):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = timm.create_model(model, num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


class Start(pl.Callback):
    """Comes before all other callbacks, so that what they do is timed."""

    at = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.at = _now()

    def on_validation_start(self, *_: Any) -> None:
        self.at = _now()


class Clock(pl.Callback):
    """Comes after all other callbacks and keeps the time since the start."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.steps: list[float] = []
        self.validations: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(_now() - self.start.at)

    def on_validation_end(self, *_: Any) -> None:
        self.validations.append(_now() - self.start.at)


def _now() -> float:
    wait()
    return time.perf_counter()


def train(arguments: argparse.Namespace, callbacks: list[Any]) -> Clock:
    torch.manual_seed(0)
    count, size = arguments.batch_size, arguments.steps * arguments.batch_size
    module = Classifier(arguments.model)
    shape = timm.data.resolve_model_data_config(module.model)["input_size"]
    images = torch.randn(size, *shape)
    data = TensorDataset(images, torch.randint(10, (size,)))
    start = Start()
    clock = Clock(start)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=arguments.epochs,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=pl.loggers.TensorBoardLogger(folder),
            callbacks=[start, *callbacks, clock],
        )
        trainer.fit(module, DataLoader(data, count), DataLoader(data, count))
    return clock


def monitor(*, captured: bool) -> AttributionMonitor:
    return AttributionMonitor(METHODS, CLASSES, SAMPLES, captured=captured, on_error="raise")


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="training steps per epoch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--captured", action="store_true", help="repeat explanations as graphs")
    arguments = parser.parse_args(given)
    warnings.simplefilter("ignore")

    plain, watched = train(arguments, []), train(arguments, [monitor(captured=arguments.captured)])
    profile = cProfile.Profile()
    profile.enable()
    train(arguments, [monitor(captured=arguments.captured)])
    profile.disable()

    step = median(plain.steps)
    # The first run compiles, allocates and fills caches.
    cost = median(watched.validations[1:]) - median(plain.validations[1:])
    pairs = SAMPLES * len(CLASSES) * len(METHODS)
    print(f"{arguments.model}, batches of {arguments.batch_size}, on {_device()}")
    print(f"a training step: {step:.2f} s")
    print(
        f"explaining and logging {pairs} maps: {cost:.2f} s, as long as {cost / step:.1f} steps\n"
    )
    print("| training steps between two explanations | share of the time |")
    print("|--:|--:|")
    for steps in (10, 100, 1000, 10000):
        print(f"| {steps} | {cost / (cost + steps * step):.2%} |")
    print("\n| what | share of the callback |")
    print("|---|--:|")
    times = _times(profile)
    whole = times["explained_runs.py", "_see"]
    for what, function in PARTS.items():
        print(f"| {what} | {times[function] / whole:.0%} |")


def _times(profile: cProfile.Profile) -> dict[tuple[str, str], float]:
    """Cumulated seconds by file and function of the callback."""
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return {
        (file.rpartition("/")[2], name): cumulated
        for (file, _, name), (_, _, _, cumulated, _) in stats.items()
        if "lightning_callbacks" in file or "captum_transformer" in file
    }


def _device() -> str:
    device = best_device()
    threads = f"{torch.get_num_threads()} CPU threads"
    return threads if device.type == "cpu" else device_name(device)


if __name__ == "__main__":
    main()
