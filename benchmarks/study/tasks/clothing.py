"""What is worn in this photograph?"""

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
from benchmarks.study.models import clothing_vit, device, normalised, parameters
from benchmarks.study.pictures import Pictures
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.training import Trained, trained

NAME, SAMPLES = "clothing", 126
EPOCHS = 45
BLACK = normalised(torch.zeros(1))
SIDE = 96
PRESENT = 0.01  # the share of the pixels from which on a class counts as shown


def pixels(images: Tensor) -> Tensor:
    small = F.interpolate(images.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
    return normalised(small)


def shown(maps: Tensor) -> Tensor:
    """Which classes are there to be seen: ``(samples, classes)``."""
    return (clothing.masks(maps).double().mean((2, 3)) >= PRESENT).float()


def train(data: Path, checkpoint: Path, *, epochs: int | None = None) -> Trained:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*clothing.read(data, "train")), 32, shuffle=True)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        squares = cropped(*batch, smallest=64)
        images = torch.cat([pixels(image[None]) for image, _ in squares])
        labels = torch.cat([shown(maps[None]) for _, maps in squares])
        return F.binary_cross_entropy_with_logits(model(flipped(images)), labels)

    def measure(model: nn.Module) -> dict[str, float]:
        split = clothing.read(data, "val")
        device = next(model.parameters()).device
        scores = torch.cat([model(pixels(part).to(device)) for part in split.images.split(32)])
        labels, ranks = shown(split.maps).numpy(), scores.cpu().numpy()
        both = [c for c in range(labels.shape[1]) if 0 < labels[:, c].mean() < 1]
        return {
            "mean average precision": average_precision_score(labels[:, both], ranks[:, both]),
            "chance of that": labels[:, both].mean(),
            "area under ROC": roc_auc_score(labels[:, both], ranks[:, both]),
        }

    return trained(
        checkpoint,
        lambda: clothing_vit(len(clothing.CLASSES)),
        loader,
        loss,
        measure,
        epochs=epochs or EPOCHS,
        learning_rate=1.5e-3,
    )


def subject(data: Path, models: Path, samples: int, epochs: int | None = None) -> Subject:
    """Every class that is there and that the model says is there, in every held-out photograph."""
    model, held_out, seconds = train(data, models / f"{NAME}.pt", epochs=epochs)
    images, labelled = (part[:samples] for part in clothing.read(data, "val"))
    small = pixels(images)
    with torch.no_grad():
        found = torch.cat([model(part) for part in small.split(32)]) > 0
    photographs, classes = (found & shown(labelled).bool()).nonzero().T
    nearest = F.interpolate(labelled[:, None].float(), (SIDE, SIDE), mode="nearest")[:, 0]
    shapes = clothing.masks(nearest)[photographs, classes]
    ignore = (nearest == clothing.PADDING)[photographs]
    pictures = Pictures(model, small[photographs], {"target": classes}, BLACK, device())
    groups = photographs.tolist()

    def together(measured: Measured) -> Measured:
        scores = {n: replace(score, groups=groups) for n, score in measured.scores.items()}
        return Measured(scores, measured.curves)

    def of_classes(measure: Callable[[Tensor], Measured]) -> Callable[[Maps], Measured]:
        return lambda maps: together(measure(maps["target"]))

    average = "mean average precision"
    return Subject(
        NAME,
        state_of(model, len(images)),
        {
            "model": f"ViT, 4 layers, {parameters(model):,} parameters, 144 patches",
            "held-out accuracy": (
                f"{average} {held_out[average]:.1%} (chance {held_out['chance of that']:.1%}), "
                f"area under ROC {held_out['area under ROC']:.1%}, {len(clothing.CLASSES)} classes"
            ),
            "training": f"{seconds:.0f} s",
            "samples": (
                f"{len(groups)} classes that are there and were found, in {len(set(groups))} "
                "held-out photographs (drawn together in the bootstrap)"
            ),
            "object": f"{shapes.double().mean():.1%} of a photograph's area, on average",
        },
        pictures.methods(),
        {
            "segmentation": of_classes(lambda found: pictures.segmentation(found, shapes, ignore)),
            "localisation": of_classes(lambda found: pictures.localisation(found, shapes)),
        },
    )
