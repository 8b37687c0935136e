"""What is in this picture of one object?"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.study.augment import flipped, shifted
from benchmarks.study.data import objects
from benchmarks.study.models import device, normalised, parameters, picture_vit
from benchmarks.study.pictures import Pictures
from benchmarks.study.store import state_of
from benchmarks.study.subject import Subject, evenly
from benchmarks.study.training import Trained, trained
from captum_transformer.metrics import boxes_to_masks

NAME, SAMPLES, SEEDS = "vision", 120, 3  # samples of each model
EPOCHS = 16
BLACK = normalised(torch.zeros(1))


def pixels(images: Tensor) -> Tensor:
    return normalised(images.float() / 255)


def train(data: Path, models: Path, seed: int, *, epochs: int | None = None) -> Trained:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        split = objects.read(data, "train")
        return DataLoader(TensorDataset(split.images, split.labels), 64, shuffle=True)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        images = shifted(flipped(pixels(images)), by=8)
        return F.cross_entropy(model(images), labels, label_smoothing=0.1)

    def measure(model: nn.Module) -> dict[str, float]:
        split = objects.read(data, "val")
        device = next(model.parameters()).device
        scores = torch.cat([model(pixels(part).to(device)) for part in split.images.split(100)])
        return {"accuracy": (scores.argmax(1).cpu() == split.labels).double().mean().item()}

    return trained(
        models / f"{NAME}-{seed}.pt",
        lambda: picture_vit(10),
        loader,
        loss,
        measure,
        epochs=epochs or EPOCHS,
        learning_rate=1.5e-3,
        seed=seed,
    )


def subject(
    data: Path, models: Path, samples: int, epochs: int | None = None, seed: int = 0
) -> Subject:
    """All held-out pictures count, rightly classified or not, as in CVPR 2021."""
    model, held_out, seconds = train(data, models, seed, epochs=epochs)
    split = objects.read(data, "val")
    chosen = evenly(len(split.labels), samples, seed)  # the classes follow each other in the file
    images, labels = pixels(split.images[chosen]), split.labels[chosen]
    first_and_behind = split.boxes[chosen] + torch.tensor([0, 0, 1, 1])
    masks = boxes_to_masks(first_and_behind, tuple(images.shape[2:]))
    with torch.no_grad():
        predicted = model(images).argmax(1)
    pictures = Pictures(model, images, {"predicted": predicted, "target": labels}, BLACK, device())
    return Subject(
        NAME,
        state_of(model, images),
        {
            "model": f"ViT, 4 layers, {parameters(model):,} parameters, 64 patches",
            "held-out accuracy": f"{held_out['accuracy']:.1%} of 500 pictures",
            "training": f"{seconds:.0f} s",
            "samples": f"{len(chosen)} held-out pictures, whatever the model says of them",
            "object": f"{masks.double().mean():.1%} of a picture's area, on average",
        },
        pictures.methods(),
        {
            "perturbation": lambda maps: pictures.perturbation(maps, labels),
            "segmentation": lambda maps: pictures.segmentation(maps["predicted"], masks),
            "localisation": lambda maps: pictures.localisation(maps["target"], masks),
        },
        seed=seed,
    )
