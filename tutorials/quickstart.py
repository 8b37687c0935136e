"""Trains a small vision Transformer, watches its explanations move, and measures them.

The data are scikit-learn's handwritten digits, four in each picture. The model predicts which
digits are there. An explanation of "there is a 3" should point at the 3, so each explanation has a
right cell, and chance is 25 %.

    python tutorials/quickstart.py

takes less than three minutes on two CPU cores and uses a GPU if there is one.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from captum.attr import Attribution, IntegratedGradients
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LeGrad,
    LibraGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.visualization import overlay, to_display
from lightning_callbacks import AttributionMonitor

METHODS: dict[str, Callable[[nn.Module], Attribution]] = {
    "TransformerAttribution": TransformerAttribution,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "LeGrad": LeGrad,
    "AttentionGradCam": AttentionGradCam,
    "PartialLRP": PartialLRP,
    "Full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "RawAttention": RawAttention,
    "AttentionRollout": AttentionRollout,
    "Captum's IntegratedGradients": IntegratedGradients,
}
CELL = 8  # pixels; a mosaic is two cells wide and two high
BATCH_SIZE = 128


class Mosaics(NamedTuple):
    """Pictures of four digits.

    Attributes:
        images: ``(B, 1, 16, 16)`` of digits 8 wide and high, ink from 0 to 1.
        digits: ``(B, 4)``, which digit each cell holds, row by row.
        labels: ``(B, 10)``, 1 for each of the four, 0 for the others.
    """

    images: Tensor
    digits: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, images: Tensor, digits: Tensor, count: int, seed: int) -> Mosaics:
        """Puts together about `count` mosaics at random, each of four different digits."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(images), (2 * count, 4), generator=generator)
        labels = F.one_hot(digits[chosen], 10).amax(1)
        distinct = labels.sum(1) == 4  # as good as half of them
        chosen, labels = chosen[distinct], labels[distinct]
        side = images.shape[-1]
        cells = images[chosen].view(-1, 2, 2, side, side)
        mosaics = cells.transpose(2, 3).reshape(-1, 1, 2 * side, 2 * side)
        return cls(mosaics, digits[chosen], labels.float())

    def repeated(self, times: int) -> Mosaics:
        return Mosaics(*(values.repeat_interleave(times, 0) for values in self))

    def first(self, count: int) -> Mosaics:
        return Mosaics(*(values[:count] for values in self))

    def loader(self, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        dataset = TensorDataset(self.images, self.labels)
        return DataLoader(dataset, BATCH_SIZE, shuffle=shuffle)


def split_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out digits; no image of a digit is in both."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    digits = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, held_out = order[: len(order) * 3 // 4], order[len(order) * 3 // 4 :]

    # 1347 digits are few: the model gets each of them at nine positions, a pixel apart.
    padded = F.pad(images[train], (1, 1, 1, 1))
    shifted = [padded[:, y : y + CELL, x : x + CELL] for y in range(3) for x in range(3)]
    return (torch.cat(shifted), digits[train].repeat(9)), (images[held_out], digits[held_out])


class DigitFinder(pl.LightningModule):
    """A vision Transformer as timm makes it, with one yes-or-no question per digit."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            img_size=2 * CELL, patch_size=4, in_chans=1, num_classes=10,
            embed_dim=64, depth=3, num_heads=8, mlp_ratio=2,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = F.binary_cross_entropy_with_logits(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        logits = self(images)
        right = (logits > 0) == (labels > 0)
        self.log("val/loss", F.binary_cross_entropy_with_logits(logits, labels))
        self.log("val/digits", right.float().mean(), prog_bar=True)
        self.log("val/mosaics", right.all(1).float().mean(), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        if not (self.trainer.sanity_checking or sys.stdout.isatty()):
            found = self.trainer.callback_metrics
            right, whole = (f"{found[f'val/{name}']:.1%}" for name in ("digits", "mosaics"))
            print(f"epoch {self.current_epoch + 1}: {right} of answers, {whole} of mosaics right")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=8e-3, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def explain(model: nn.Module, mosaics: Mosaics, cells: Tensor) -> dict[str, tuple[Tensor, float]]:
    """Explains for each mosaic the digit that the given cell holds, with every method.

    Returns:
        The maps, ``(B, 16, 16)``, and the seconds per image, by the name of the method.
    """
    device = next(model.parameters()).device
    targets = mosaics.digits.gather(1, cells[:, None])[:, 0]
    explained = {}
    for name, method in METHODS.items():
        attribution = method(model)
        maps, start = [], time.perf_counter()
        for images, target in zip(mosaics.images.split(64), targets.split(64), strict=True):
            attr = attribution.attribute(images.to(device), target=target.to(device))
            maps.append(attr.detach().sum(1).cpu())  # over the colour channels, here only one
        explained[name] = torch.cat(maps), (time.perf_counter() - start) / len(cells)
    return explained


def share_in_cell(maps: Tensor, cells: Tensor) -> float:
    """How much of the positive relevance lies in the right cell, on average."""
    by_cell = maps.clamp(min=0).view(-1, 2, CELL, 2, CELL).sum((2, 4)).view(-1, 4)
    share = by_cell.gather(1, cells[:, None])[:, 0] / by_cell.sum(1)
    return share.nan_to_num(0).mean().item()  # a map with nothing positive points nowhere


def draw_figure(model: nn.Module, mosaics: Mosaics, path: Path) -> None:
    """Draws two explanations of each mosaic: for the digit at its top left and at its top right."""
    twice = mosaics.repeated(2)
    cells = torch.arange(len(twice.images)) % 2
    explained = explain(model, twice, cells)
    pictures = F.interpolate(twice.images, scale_factor=8, mode="bicubic").clamp(0, 1)

    rows, columns = len(cells), 1 + len(explained)
    figure = Figure(figsize=(1.2 * columns, 1.2 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns)
    axes[0, 0].set_title("Held-out\nmosaic", fontsize=9)
    for row, cell in enumerate(cells.tolist()):
        axes[row, 0].imshow(to_display(pictures[row]))
        axes[row, 0].set_ylabel(f"why a {twice.digits[row, cell]}?", fontsize=11)
        for column, (name, (maps, _)) in enumerate(explained.items(), start=1):
            axes[row, column].imshow(overlay(pictures[row], maps[row], smooth=True))
            # One word to a line, as the columns are narrow.
            axes[0, column].set_title(re.sub(r"(?<=[a-z])(?=[A-Z])| ", "\n", name), fontsize=9)
        for axis in axes[row]:
            side = pictures.shape[-1] / 2
            axis.add_patch(Rectangle((cell * side, 0), side, side, fill=False, ec="lime", lw=2))
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--mosaics", type=int, default=2**14, help="training mosaics per epoch")
    parser.add_argument("--held-out", type=int, default=500, help="mosaics that are explained")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    args = parser.parse_args()

    pl.seed_everything(0)
    torch.set_num_threads(1)  # the model is so small that more threads mostly wait for each other
    # Everything is in memory already, there is nothing for worker processes to do.
    warnings.filterwarnings("ignore", message=".*does not have many workers")

    train_digits, held_out_digits = split_digits()
    train = Mosaics.draw(*train_digits, count=min(2**16, args.epochs * args.mosaics), seed=1)
    held_out = Mosaics.draw(*held_out_digits, count=args.held_out, seed=2)

    model = DigitFinder()
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        limit_train_batches=args.mosaics // BATCH_SIZE,
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(args.out.parent, name=args.out.name),
        callbacks=[
            AttributionMonitor(
                methods={"chefer": TransformerAttribution, "lrp": ConservativeLRP},
                classes=("label", "predicted"),
                num_samples=4,
            )
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),  # a file gets a line for each epoch
        log_every_n_steps=10,
    )
    trainer.fit(model, train.loader(shuffle=True), held_out.loader())
    model.to(trainer.strategy.root_device).eval()

    right = trainer.callback_metrics
    print(f"\nOn held-out mosaics, {right['val/digits']:.1%} of the model's answers are right.")

    cells = torch.arange(len(held_out.images)) % 4
    print("How much of the positive relevance is in the cell of the explained digit?\n")
    print(f"{'method':<30}{'in the right cell':>18}{'ms per image':>15}")
    print(f"{'(chance)':<30}{0.25:>18.1%}")
    for name, (maps, seconds) in explain(model, held_out, cells).items():
        print(f"{name:<30}{share_in_cell(maps, cells):>18.1%}{1000 * seconds:>15.2f}")

    picture = args.out / "explanations.png"
    draw_figure(model, held_out.first(3), picture)
    print(f"\nThe explanations of three held-out mosaics:  {picture}")
    print(f"The same epoch by epoch:  tensorboard --logdir {args.out}")


if __name__ == "__main__":
    main()
