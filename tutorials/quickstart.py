"""Trains a small vision Transformer, watches its explanations move, and measures them.

The data are scikit-learn's handwritten digits, four of them to a picture. The model is asked which
digits are in it. An explanation of "there is a 3" ought to point at the 3, so each explanation has
a right cell, and a method that points nowhere in particular gets 25 %.

    python tutorials/quickstart.py

takes less than three minutes on two CPU cores and uses a GPU if there is one.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
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
    AttentionGradCam,
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from lightning_callbacks import AttributionMonitor

METHODS: dict[str, Callable[[nn.Module], Attribution]] = {
    "TransformerAttribution": TransformerAttribution,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "ConservativeLRP": ConservativeLRP,
    "AttentionGradCam": AttentionGradCam,
    "PartialLRP": PartialLRP,
    "RawAttention": RawAttention,
    "AttentionRollout": AttentionRollout,
    "Captum's IntegratedGradients": IntegratedGradients,
}
CELL = 8  # pixels; a mosaic is two cells wide and two high
BATCH_SIZE = 128


class Mosaics(NamedTuple):
    """Pictures of four digits.

    Attributes:
        images: ``(B, 1, 16, 16)``, ink from 0 to 1.
        digits: ``(B, 4)``, which digit each cell holds, row by row.
        labels: ``(B, 10)``, 1 for every digit that is somewhere in the picture.
    """

    images: Tensor
    digits: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, images: Tensor, digits: Tensor, count: int, seed: int) -> Mosaics:
        """Puts together `count` mosaics of randomly chosen digits."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(images), (count, 4), generator=generator)
        mosaics = images[chosen].view(-1, 2, 2, CELL, CELL).transpose(2, 3)
        return cls(
            images=mosaics.reshape(-1, 1, 2 * CELL, 2 * CELL),
            digits=digits[chosen],
            labels=F.one_hot(digits[chosen], 10).amax(1).float(),
        )

    def without_repeated_digits(self) -> Mosaics:
        """Those mosaics in which every digit has one cell of its own."""
        distinct = self.labels.sum(1) == 4
        return Mosaics(*(values[distinct] for values in self))

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

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.binary_cross_entropy_with_logits(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        right = (logits > 0) == (labels > 0)
        self.log("val/loss", F.binary_cross_entropy_with_logits(logits, labels))
        self.log("val/digits", right.float().mean(), prog_bar=True)
        self.log("val/mosaics", right.all(1).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=4e-3, total_steps=int(self.trainer.estimated_stepping_batches)
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
    twice = Mosaics(*(values.repeat_interleave(2, 0) for values in mosaics))
    cells = torch.arange(len(twice.images)) % 2
    explained = explain(model, twice, cells)

    rows, columns = len(cells), len(explained)
    figure = Figure(figsize=(1.25 * columns, 1.25 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for column, (name, (maps, _)) in enumerate(explained.items()):
        axes[0, column].set_title("\n".join(_words(name)), fontsize=8)
        for row, cell in enumerate(cells.tolist()):
            axis, ink, relevance = axes[row, column], twice.images[row, 0], maps[row]
            scale = relevance.abs().max().item() or 1.0
            axis.imshow(relevance, cmap="bwr", vmin=-scale, vmax=scale)
            axis.imshow(torch.zeros_like(ink), cmap="gray", vmin=0, vmax=1, alpha=ink.numpy())
            corner = (cell % 2 * CELL - 0.5, cell // 2 * CELL - 0.5)
            axis.add_patch(Rectangle(corner, CELL, CELL, fill=False, color="limegreen", lw=2.5))
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(f"why a {twice.digits[row, cell]}?", fontsize=9)
    figure.savefig(path, dpi=130)


def _words(name: str) -> list[str]:
    """CamelCase, word by word: the titles of narrow columns."""
    return "".join(f" {c}" if c.isupper() else c for c in name).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--mosaics", type=int, default=2**14, help="training mosaics per epoch")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    args = parser.parse_args()

    pl.seed_everything(0)
    # Everything is in memory already, there is nothing for worker processes to do.
    warnings.filterwarnings("ignore", message=".*does not have many workers")

    train_digits, held_out_digits = split_digits()
    train = Mosaics.draw(*train_digits, count=args.epochs * args.mosaics, seed=1)
    held_out = Mosaics.draw(*held_out_digits, count=1000, seed=2).without_repeated_digits()

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
                classes=("predicted", 3),
                num_samples=4,
            )
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, train.loader(shuffle=True), held_out.loader())
    model.to(trainer.strategy.root_device).eval()

    cells = torch.arange(len(held_out.images)) % 4
    print("\nOf the positive relevance, how much lies in the cell of the explained digit?\n")
    print(f"{'method':<30}{'in the right cell':>18}{'ms per image':>15}")
    print(f"{'(chance)':<30}{0.25:>18.1%}")
    for name, (maps, seconds) in explain(model, held_out, cells).items():
        print(f"{name:<30}{share_in_cell(maps, cells):>18.1%}{1000 * seconds:>15.2f}")

    picture = args.out / "explanations.png"
    draw_figure(model, Mosaics(*(values[:3] for values in held_out)), picture)
    print(f"\nThe explanations of three held-out mosaics, side by side:  {picture}")
    print(f"How they came about, epoch by epoch:  tensorboard --logdir {args.out}")


if __name__ == "__main__":
    main()
