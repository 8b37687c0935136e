# %% [markdown]
# # 1 Vision, with timm
#
# Which patches of an image support one class, and which another? This tutorial trains a small ViT
# for a few seconds, on mosaics of two photographs. Each mosaic has a known place for each class,
# so we can check whether an explanation points at it.
#
# Nothing is downloaded. With your own trained model, skip to [Explain](#explain) and use `model =
# timm.create_model("vit_base_patch16_224", pretrained=True).eval()` instead.

# %%
import matplotlib.pyplot as plt
import timm
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    Contrast,
    GenericAttentionRelevance,
    TransformerAttribution,
    describe,
)
from captum_transformer.metrics import energy_inside
from captum_transformer.visualization import image_grid, to_display

torch.manual_seed(0)
torch.set_num_threads(1)  # the model is so small that more threads mostly wait for each other

# %% [markdown]
# ## Data: mosaics of photographs
#
# scikit-learn comes with two photographs. Some of their regions are the classes; a mosaic has
# four different ones, each a random crop. The test mosaics have new crops of the same
# photographs.

# %%
palace, flower = (torch.tensor(p).permute(2, 0, 1) / 255 for p in load_sample_images().images)
REGIONS = {
    "sky": palace[:, :150, 360:],
    "palace": palace[:, 160:360, 110:340],
    "lake": palace[:, 230:320, 380:540],
    "trees": palace[:, 330:, 380:540],
    "petals": flower[:, 110:340, 190:430],
    "leaves": flower[:, 60:320, :150],
}
CLASSES = list(REGIONS)
CELL = 24


def crops(region: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random square crops, some of them mirrored: ``(count, 3, CELL, CELL)``."""
    top = torch.randint(region.shape[1] - CELL + 1, (count,), generator=generator)
    left = torch.randint(region.shape[2] - CELL + 1, (count,), generator=generator)
    cut = [region[:, y : y + CELL, x : x + CELL] for y, x in zip(top, left, strict=True)]
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.stack([c.flip(-1) if m else c for c, m in zip(cut, mirrored, strict=True)])


def mosaics(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``(count, 3, 48, 48)``, normalised, and which class is in each of their four cells."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, len(CLASSES), generator=generator).argsort(1)[:, :4]
    cells = torch.empty(count, 4, 3, CELL, CELL)
    for number, region in enumerate(REGIONS.values()):
        chosen = order == number
        cells[chosen] = crops(region, int(chosen.sum()), generator)
    rows = cells.view(count, 2, 2, 3, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return (rows.reshape(count, 3, 2 * CELL, 2 * CELL) - 0.5) / 0.25, order


images, cells = mosaics(1500, seed=0)
test_images, test_cells = mosaics(64, seed=1)

figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for axis, image, names in zip(axes, test_images, test_cells.tolist(), strict=False):
    axis.imshow(to_display(image))
    axis.set_title(", ".join(CLASSES[n] for n in names), fontsize=9)
    axis.axis("off")

# %% [markdown]
# ## A small ViT
#
# For each class, it predicts whether it is in the mosaic.

# %%
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=2 * CELL, patch_size=8, embed_dim=48, depth=2, num_heads=4,
    mlp_ratio=2, num_classes=len(CLASSES),
)  # fmt: skip
labels = torch.zeros(len(cells), len(CLASSES)).scatter(1, cells, 1)
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=6 * 60)
for _ in range(6):
    for batch in torch.randperm(len(images)).split(25):
        loss = F.binary_cross_entropy_with_logits(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

model.eval()
test_labels = torch.zeros(len(test_cells), len(CLASSES)).scatter(1, test_cells, 1)
with torch.no_grad():
    right = ((model(test_images) > 0) == (test_labels > 0)).float().mean()
print(f"{right:.1%} of the answers on new mosaics are right")
assert right > 0.9

# %% [markdown]
# ## Explain
#
# A method takes the model as it is. `describe` lists what the trace sees: each attention call and
# each residual connection.

# %%
print(describe(model, test_images[:1]))

# %% [markdown]
# `attribute` has the shape of the images. The target is a class for all of them, or one for each.
# `attribute_targets` explains several targets and runs the model only once: here the classes of
# the top left and the bottom right cell of each mosaic.

# %%
method = GenericAttentionRelevance(model)
shown, names = test_images[:3], [[CLASSES[n] for n in row] for row in test_cells[:3].tolist()]
first, last = method.attribute_targets(shown, [test_cells[:3, 0], test_cells[:3, 3]])
assert first.shape == shown.shape

rows = [f"{row[0]}, then {row[3]}" for row in names]
image_grid(
    dict(zip(rows, shown, strict=True)),
    {
        row: {"top left": first[number], "bottom right": last[number]}
        for number, row in enumerate(rows)
    },
)

# %% [markdown]
# `attribute_tokens` gives the relevance of each patch, in row-major order:

# %%
patches = method.attribute_tokens(test_images[:1], target=test_cells[:1, 0])
print(patches.view(6, 6).div(patches.max()).mul(100).round().int())

# %% [markdown]
# ## Why this rather than that
#
# A [`Contrast`](../docs/reference/model.md) of two targets is explained like a single one.
# `AttnLRP` gives signed values: red supports the first class, blue the second.

# %%
versus = Contrast(test_cells[:3, 0], rather_than=test_cells[:3, 1])
signed = AttnLRP(model).attribute(shown, target=versus)

rows = [f"{row[0]}, not {row[1]}" for row in names]
image_grid(
    dict(zip(rows, shown, strict=True)),
    {row: {"AttnLRP": relevance} for row, relevance in zip(rows, signed, strict=True)},
)

# %% [markdown]
# ## Which method points at the right place?
#
# Each mosaic has a right cell, so we can measure the share of positive relevance there; chance is
# 25 %. This is one small model, and the order may differ on yours. Attention rollout is the same
# for all classes, so it can't point at the right one.

# %%
corner = torch.arange(len(test_images)) % 4  # ask for another cell each time
target = test_cells.gather(1, corner[:, None])[:, 0]
mask = torch.zeros(len(test_images), 2, CELL, 2, CELL, dtype=torch.bool)
mask[torch.arange(len(corner)), corner // 2, :, corner % 2] = True
mask = mask.view(-1, 2 * CELL, 2 * CELL)

methods = (GenericAttentionRelevance, TransformerAttribution, AttnLRP, AttentionRollout)
maps = {make.__name__: make(model).attribute(test_images, target=target) for make in methods}
shares = {name: energy_inside(relevance, mask).mean() for name, relevance in maps.items()}
for name, share in shares.items():
    print(f"{name:<28}{share:.0%}")
assert shares["GenericAttentionRelevance"] > 0.35 > shares["AttentionRollout"]

rows = [f"why {CLASSES[n]}?" for n in target[:3].tolist()]
image_grid(
    dict(zip(rows, shown, strict=True)),
    {
        row: {name: relevance[number] for name, relevance in maps.items()}
        for number, row in enumerate(rows)
    },
)

# %% [markdown]
# Go on with [texts](02_text.py), or let a callback [watch a training](03_monitoring.py).
