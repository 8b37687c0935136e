"""What is worn in this part of a photograph?"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.study.augment import cropped, flipped
from benchmarks.study.data import clothing
from benchmarks.study.models import device, normalised, parameters, picture_vit
from benchmarks.study.pictures import Pictures
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.tasks import vision
from benchmarks.study.training import Trained, trained

NAME, SAMPLES, SEEDS = "clothing", 120, 3
EPOCHS = 160
SIDE = 64
SMALLEST, LARGEST = 48, 112  # of a photograph of 160x160
PRESENT = 0.05  # the share of the pixels from which on a class counts as shown


class Parts:
    """Squares of photographs.

    Args:
        photographs: as they are read.
    """

    def __init__(self, images: Tensor, maps: Tensor) -> None:
        squares = cropped(images, maps, SMALLEST, LARGEST)
        size = (SIDE, SIDE)
        self.images = torch.cat(
            [
                F.interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True)
                for image, _ in squares
            ]
        )
        self.maps = torch.cat(
            [F.interpolate(m[None, None].float(), size, mode="nearest")[0] for _, m in squares]
        )
        self.shown = clothing.masks(self.maps).double().mean((2, 3)) >= PRESENT


def held_out_parts(data: Path, count: int, seed: int = 0) -> tuple[Parts, list[int]]:
    """For each seed the same ones, evenly from all held-out photographs, and of which each is."""
    images, maps = clothing.read(data, "val")
    photographs = torch.arange(count) % len(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1 + seed)
        return Parts(images[photographs], maps[photographs]), photographs.tolist()


def train(data: Path, models: Path, seed: int, *, epochs: int | None = None) -> Trained:
    """Goes on from the model of objects, as four hundred photographs are few."""
    beginning = vision.train(data, models, seed, epochs=epochs).model.state_dict()

    def build() -> nn.Module:
        model = picture_vit(len(clothing.CLASSES))
        own = {name: tensor for name, tensor in beginning.items() if not name.startswith("head.")}
        model.load_state_dict(own, strict=False)
        return model

    def loader() -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*clothing.read(data, "train")), 64, shuffle=True)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        parts = Parts(*batch)
        scores = model(flipped(normalised(parts.images)))
        return F.binary_cross_entropy_with_logits(scores, parts.shown.float())

    def measure(model: nn.Module) -> dict[str, float]:
        parts, _ = held_out_parts(data, 500)
        where = next(model.parameters()).device
        images = normalised(parts.images).split(100)
        ranks = torch.cat([model(part.to(where)) for part in images]).cpu().numpy()
        labels = parts.shown.numpy()
        both = [c for c in range(labels.shape[1]) if 0 < labels[:, c].mean() < 1]
        return {
            "mean average precision": float(
                average_precision_score(labels[:, both], ranks[:, both])
            ),
            "chance of that": float(labels[:, both].mean()),
            "area under ROC": float(roc_auc_score(labels[:, both], ranks[:, both])),
        }

    return trained(
        models / f"{NAME}-{seed}.pt", build, loader, loss, measure,
        epochs=epochs or EPOCHS, learning_rate=1e-3, seed=seed,
    )  # fmt: skip


def subject(
    data: Path, models: Path, samples: int, epochs: int | None = None, seed: int = 0
) -> Subject:
    """Every class that is there and that the model finds.

    Where it finds none, the one that it is surest of among those that are there.
    """
    model, held_out, seconds = train(data, models, seed, epochs=epochs)
    parts, photographs = held_out_parts(data, samples, seed)
    images = normalised(parts.images)
    with torch.no_grad():
        scores = torch.cat([model(part) for part in images.split(100)])
    scores = scores.masked_fill(~parts.shown, -torch.inf)
    surest = (scores == scores.amax(1, keepdim=True)) & parts.shown
    chosen, classes = ((scores > 0) | surest).nonzero().T
    shapes = clothing.masks(parts.maps)[chosen, classes]
    ignore = (parts.maps == clothing.PADDING)[chosen]
    pictures = Pictures(model, images[chosen], {"target": classes}, vision.BLACK, device())
    groups = [photographs[part] for part in chosen.tolist()]

    def together(measured: Measured) -> Measured:
        scores = {n: replace(score, groups=groups) for n, score in measured.scores.items()}
        return Measured(scores, measured.curves)

    def of_classes(measure: Callable[[Tensor], Measured]) -> Callable[[Maps], Measured]:
        return lambda maps: together(measure(maps["target"]))

    average = "mean average precision"
    return Subject(
        NAME,
        state_of(model, pictures.images),
        {
            "model": f"ViT, 4 layers, {parameters(model):,} parameters, 64 patches; goes on from "
            "the model of objects",
            "held-out accuracy": (
                f"{average} {held_out[average]:.1%} (chance {held_out['chance of that']:.1%}), "
                f"area under ROC {held_out['area under ROC']:.1%}, {len(clothing.CLASSES)} classes"
            ),
            "training": f"{seconds:.0f} s",
            "samples": (
                f"{len(groups)} classes that are there and were found, in {len(images)} parts of "
                f"{len(set(groups))} held-out photographs (drawn together in the bootstrap)"
            ),
            "object": f"{shapes.double().mean():.1%} of a part's area, on average",
        },
        pictures.methods(),
        {
            "segmentation": of_classes(lambda found: pictures.segmentation(found, shapes, ignore)),
            "localisation": of_classes(lambda found: pictures.localisation(found, shapes)),
        },
        seed=seed,
    )
