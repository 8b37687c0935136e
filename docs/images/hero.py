"""Draws the picture at the top of README.md: python docs/images/hero.py.

A small vision Transformer learns, within minutes on two CPU cores, which of six photographs are in
a mosaic of four. It is trained on crops and asked about the whole photographs, so the cell that
should be relevant is known. The percentages are shares of the positive relevance in that cell.

The photographs come with scikit-image (pip install scikit-image) and are in the public domain:
Chelsea the cat by Stefan van der Walt (CC0), a cup of coffee by Rachel Michetti (CC0), Eileen
Collins (NASA), a launch of Falcon 9 (SpaceX), an eye's retina (CC0), the Hubble eXtreme Deep Field
(NASA).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data
from timm.models import VisionTransformer
from torch import Tensor

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.visualization import POSITIVE_CMAP, overlay, to_display

PHOTOS = {
    "cat": data.cat,
    "coffee": data.coffee,
    "astronaut": data.astronaut,
    "rocket": data.rocket,
    "retina": data.retina,
    "galaxies": data.hubble_deep_field,
}
NAMES = list(PHOTOS)
METHODS = {
    "AttnLRP": AttnLRP,
    "TransformerAttribution": TransformerAttribution,
    "GenericAttention-\nRelevance": GenericAttentionRelevance,
    "attention rollout\n(a baseline)": AttentionRollout,
}
CELL, PATCH = 64, 8  # pixels; a mosaic is two cells wide and high
MOSAICS = (
    (("cat", "rocket", "coffee", "astronaut"), ("cat", "coffee")),
    (("galaxies", "astronaut", "rocket", "retina"), ("astronaut", "rocket")),
)


def square(photo: Tensor, side: int, size: int, y: int, x: int) -> Tensor:
    return F.interpolate(photo[None, :, y : y + side, x : x + side], (size, size), mode="area")[0]


def whole(photo: Tensor, size: int) -> Tensor:
    """The middle of a photograph, as large as it can be."""
    side = min(photo.shape[1:])
    y, x = ((length - side) // 2 for length in photo.shape[1:])
    return square(photo, side, size, y, x)


def crops(photo: Tensor, count: int) -> Tensor:
    """Parts of a photograph, in other light, some of them mirrored: ``(count, 3, CELL, CELL)``."""
    short, pieces = min(photo.shape[1:]), []
    for share, light, contrast in torch.rand(count, 3).tolist():
        side = int((0.4 + 0.45 * share) * short)
        y, x = (int(torch.randint(length - side + 1, ())) for length in photo.shape[1:])
        piece = square(photo, side, CELL, y, x)
        piece = (piece - 0.5) * (0.6 + 0.8 * contrast) + 0.5 + 0.3 * (light - 0.5)
        pieces.append(piece.flip(2) if torch.rand(()) < 0.5 else piece)
    return torch.stack(pieces)


def mosaic(cells: Tensor) -> Tensor:
    """Puts four cells together: ``(B, 4, 3, size, size)`` to ``(B, 3, 2 * size, 2 * size)``."""
    size = cells.shape[-1]
    rows = cells.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(-1, 3, 2 * size, 2 * size)


def train(photos: Sequence[Tensor], steps: int) -> VisionTransformer:
    pool = torch.stack([crops(photo, 160) for photo in photos])
    model = VisionTransformer(
        img_size=2 * CELL, patch_size=PATCH, num_classes=len(photos),
        embed_dim=96, depth=4, num_heads=4, mlp_ratio=2,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        which = torch.randint(len(photos), (24, 4))
        images = mosaic(pool[which, torch.randint(pool.shape[1], which.shape)])
        labels = F.one_hot(which, len(photos)).amax(1).float()
        loss = F.binary_cross_entropy_with_logits(model(2 * images - 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    photos = [torch.tensor(load()).permute(2, 0, 1) / 255 for load in PHOTOS.values()]
    model = train(photos, steps=500)

    figure = Figure(figsize=(9.6, 8.2), layout="constrained")
    axes = figure.subplots(4, 1 + len(METHODS))
    row = 0
    for names, asked in MOSAICS:
        ids = [NAMES.index(name) for name in names]
        shown = mosaic(torch.stack([whole(photos[i], 192) for i in ids])[None])
        seen = 2 * mosaic(torch.stack([whole(photos[i], CELL) for i in ids])[None]) - 1
        probabilities = model(seen).sigmoid()[0].tolist()
        print(dict(zip(NAMES, [round(p, 3) for p in probabilities], strict=True)))
        for name in asked:
            cell = names.index(name)
            target = NAMES.index(name)
            axes[row, 0].imshow(to_display(shown[0]))
            axes[row, 0].set_ylabel(f"why “{name}”?", fontsize=13)
            for axis, method in zip(axes[row, 1:], METHODS.values(), strict=True):
                patches = method(model).attribute_tokens(seen, target=target)[0]
                patches = patches.clamp(min=0).unflatten(0, (2 * CELL // PATCH, -1)).detach()
                by_cell = patches.unflatten(0, (2, -1)).unflatten(2, (2, -1)).sum((1, 3)).flatten()
                share = (by_cell[cell] / by_cell.sum()).item()
                axis.imshow(overlay(shown[0], patches, smooth=True, sign="positive"))
                axis.set_xlabel(f"{share:.0%} in the {name}", fontsize=10.5)
            for axis in axes[row]:
                side = shown.shape[-1] / 2
                corner = (cell % 2 * side, cell // 2 * side)
                axis.add_patch(Rectangle(corner, side, side, fill=False, ec="lime", lw=1.6))
                axis.set(xticks=[], yticks=[])
            row += 1
    axes[0, 0].set_title("mosaic of\nphotographs", fontsize=11)
    for axis, title in zip(axes[0, 1:], METHODS, strict=True):
        axis.set_title(title, fontsize=11)
    bar = figure.colorbar(
        ScalarMappable(cmap=POSITIVE_CMAP),
        ax=axes,
        location="bottom",
        shrink=0.4,
        aspect=40,
        pad=0.02,
    )
    bar.set_ticks([0, 1], labels=["irrelevant", "most relevant of its map"])
    path = Path(__file__).with_name("hero.jpg")
    figure.savefig(path, dpi=150, pil_kwargs={"quality": 88, "subsampling": 0, "optimize": True})
    print(path)


if __name__ == "__main__":
    main()
