"""Trains a model once and keeps it."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Batch = Any


class Trained(NamedTuple):
    """A model in evaluation mode, and what it reaches on held-out data."""

    model: nn.Module
    held_out: dict[str, float]
    seconds: float


class Fit(pl.LightningModule):
    """Any model, trained with AdamW and one cycle of the learning rate."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = self.loss(self.model, batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), betas=(0.9, 0.98), weight_decay=self.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def trained(
    path: Path,
    build: Callable[[], nn.Module],
    loader: Callable[[], DataLoader[Any]],
    loss: Callable[[nn.Module, Batch], Tensor],
    measure: Callable[[nn.Module], Mapping[str, float]],
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> Trained:
    """The model kept at ``path``.

    If there is none, or one of another number of epochs, it is trained, measured on held-out data,
    and kept.
    """
    pl.seed_everything(seed, verbose=False)
    model = build()
    if path.is_file():
        kept = torch.load(path, weights_only=True)
        if kept["epochs"] == epochs:
            model.load_state_dict(kept["model"])
            return Trained(model.eval(), kept["held_out"], kept["seconds"])

    # Everything is in memory already, there is nothing for worker processes to do.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    start = time.perf_counter()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(Fit(model, loss, learning_rate, weight_decay), loader())
    seconds = time.perf_counter() - start
    model.to(trainer.strategy.root_device).eval()
    with torch.no_grad():
        held_out = dict(measure(model))
    model.cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    about = {"held_out": held_out, "seconds": seconds, "epochs": epochs}
    torch.save({"model": model.state_dict(), **about}, partial)
    partial.replace(path)
    return Trained(model, held_out, seconds)
