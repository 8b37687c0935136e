"""Which digits are in this mosaic?"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.study.bootstrap import Score
from benchmarks.study.data import mosaics
from benchmarks.study.models import device, mosaic_vit, normalised, parameters
from benchmarks.study.pictures import Pictures
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.training import Trained, trained
from captum_transformer.metrics import grid_pointing_game

NAME, SAMPLES = "mosaics", 200
EPOCHS = 10
BLACK = normalised(torch.zeros(1))
TRAINING = 10_000


def train(data: Path, checkpoint: Path, *, epochs: int | None = None) -> Trained:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        split = mosaics.read(data, "train", TRAINING, seed=1)
        return DataLoader(TensorDataset(split.images, split.labels), 128, shuffle=True)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.binary_cross_entropy_with_logits(model(normalised(images)), labels)

    def measure(model: nn.Module) -> dict[str, float]:
        split = mosaics.read(data, "test", 1000, seed=2)
        device = next(model.parameters()).device
        images = normalised(split.images)
        scores = torch.cat([model(part.to(device)) for part in images.split(100)]).cpu()
        right = (scores > 0) == (split.labels > 0)
        return {
            "answers": right.double().mean().item(),
            "mosaics": right.all(1).double().mean().item(),
        }

    return trained(
        checkpoint, mosaic_vit, loader, loss, measure, epochs=epochs or EPOCHS, learning_rate=4e-3
    )


def subject(data: Path, models: Path, samples: int, epochs: int | None = None) -> Subject:
    """Mosaics of which the model gets all answers right, where there are enough.

    The grid pointing game takes what the model is surest of.
    """
    model, held_out, seconds = train(data, models / f"{NAME}.pt", epochs=epochs)
    split = mosaics.read(data, "test", 4 * samples, seed=3)
    with torch.no_grad():
        scores = torch.cat([model(part) for part in normalised(split.images).split(100)])
    answers = ((scores > 0) == (split.labels > 0)).sum(1)
    right = answers.argsort(dim=0, descending=True, stable=True)[:samples]
    cells = torch.arange(len(right)) % 4
    targets = split.digits[right].gather(1, cells[:, None])[:, 0]
    pictures = Pictures(
        model, normalised(split.images[right]), {"target": targets}, BLACK, device()
    )

    def pointing(maps: Maps) -> Measured:
        shares = grid_pointing_game(maps["target"], cells)
        return Measured({"grid pointing game": Score.of((100 * shares).tolist())}, {})

    return Subject(
        NAME,
        state_of(model, pictures.images),
        {
            "model": f"ViT, 4 layers, {parameters(model):,} parameters, 64 patches, 16 to a digit",
            "held-out accuracy": (
                f"{held_out['answers']:.1%} of the answers, {held_out['mosaics']:.1%} of mosaics "
                "have all ten right"
            ),
            "training": f"{seconds:.0f} s",
            "samples": (
                f"{len(right)} held-out mosaics, {(answers[right] == 10).sum()} of them with all "
                "answers right; one digit of each is explained"
            ),
        },
        pictures.methods(),
        {"grid pointing game": pointing},
    )
