"""Draws why a digit is in a mosaic, by models that pool tokens: the picture of docs/concepts.md.

python -m benchmarks.study.pooled --out FOLDER

``FOLDER`` is that of `benchmarks.study`, whose models are taken if they are there.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imsave
from torch import Tensor

from benchmarks.study.models import normalised
from benchmarks.study.tasks import readouts
from captum_transformer import TransformerAttribution
from captum_transformer.visualization import image_grid, to_array

ROWS: dict[str, dict[str, bool]] = {
    "the papers' row": {"with_identity": True},
    "R - I": {"pooled_evidence": False},
    "default": {},
}
MODELS = {"digits-mean-pooling": "A ViT that averages its patches", "digits-swin": "A Swin"}
ENLARGED = 8


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where models are kept")
    parser.add_argument("--epochs", type=int, help="of each training; each has its own by default")
    args = parser.parse_args(arguments)
    tasks = {task.NAME: task for task in readouts.TASKS}
    pictures = [
        picture(tasks[name], title, args.out / "models", args.epochs)
        for name, title in MODELS.items()
    ]
    path = args.out / "readouts.png"
    imsave(path, np.concatenate(pictures))
    print(path)


def picture(
    task: readouts.Readout, title: str, models: Path, epochs: int | None
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """One mosaic of which the model gets all digits right."""
    model = task.fit(models, seed=0, epochs=epochs).model
    drawn = readouts.read("test", 200, 3)
    images = normalised(drawn.images)
    with torch.no_grad():
        right = ((model(images) > 0) == (drawn.labels > 0)).sum(1)
    best = right.argmax()
    image, digits = images[best], drawn.digits[best].tolist()
    return to_array(
        image_grid(
            _large((image + 1) / 2).expand(3, -1, -1),
            {
                row: {
                    f"why a {digit}?": _large(
                        TransformerAttribution(model, **options).attribute(
                            image[None], target=digit
                        )[0]
                    )
                    for digit in digits
                }
                for row, options in ROWS.items()
            },
            title=title,
        )
    )


def _large(pixels: Tensor) -> Tensor:
    return pixels.repeat_interleave(ENLARGED, -1).repeat_interleave(ENLARGED, -2)


if __name__ == "__main__":
    main()
