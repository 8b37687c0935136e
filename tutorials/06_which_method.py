# %% [markdown]
# # 6 Which method, and how to check it
#
# Maps of different methods differ, and all look convincing. `captum_transformer.metrics` measures
# the differences: does a map point at the right place, does the model depend on this place, does
# the map change with the class and with the model? This tutorial measures a few methods, and two
# that are wrong on purpose: a check that these pass is useless.
#
# Nothing is downloaded. For a trained model, use `timm.create_model(..., pretrained=True)` and
# your validation images instead.

# %%
from collections.abc import Callable

import matplotlib.pyplot as plt
import timm
import torch
from IPython.display import display
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
    TransformerMethod,
)
from captum_transformer.metrics import (
    class_sensitivity,
    conservation,
    grid_pointing_game,
    model_randomisation,
    pixel_perturbation,
)
from captum_transformer.visualization import image_grid, to_array

torch.manual_seed(0)
torch.set_num_threads(1)  # the model is so small that more threads mostly wait for each other

# %% [markdown]
# ## A model with known truth
#
# Each picture has four handwritten digits; the model predicts which of the ten are there. So each
# answer has a known quarter.

# %%
digits = load_digits()
of_digits = torch.tensor(digits.images, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
CELL = 8


def mosaics(count: int, seed: int, *, held_out: bool) -> tuple[Tensor, Tensor]:
    """Pictures ``(B, 1, 16, 16)`` of four different digits, and the digit in each quarter."""
    g = torch.Generator().manual_seed(seed)
    quarters = torch.rand(count, 10, generator=g).argsort(1)[:, :4]
    cells = torch.empty(count, 4, CELL, CELL)
    for digit in range(10):
        samples = of_digits[labels == digit]
        samples = samples[140:] if held_out else samples[:140]
        chosen = quarters == digit
        cells[chosen] = samples[torch.randint(len(samples), (int(chosen.sum()),), generator=g)]
    images = cells.view(count, 2, 2, CELL, CELL).transpose(2, 3)
    return images.reshape(count, 1, 2 * CELL, 2 * CELL), quarters


model = timm.create_model(
    "vit_tiny_patch16_224", img_size=2 * CELL, patch_size=4, in_chans=1, embed_dim=64, depth=3,
    num_heads=4, num_classes=10,
)  # fmt: skip
images, quarters = mosaics(8000, seed=0, held_out=False)
there = torch.zeros(len(images), 10).scatter(1, quarters, 1)
EPOCHS = 4
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * 125)
for _ in range(EPOCHS):
    for batch in torch.randperm(len(images)).split(64):
        loss = F.binary_cross_entropy_with_logits(model(images[batch]), there[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
model.eval()

images, quarters = mosaics(100, seed=1, held_out=True)
there = torch.zeros(len(images), 10).scatter(1, quarters, 1)
with torch.no_grad():
    right = ((model(images) > 0) == (there > 0)).float().mean()
print(f"{right:.1%} of the answers to new mosaics are right")
assert right > 0.85

# %% [markdown]
# ## Methods, and two controls
#
# Each is a function of a model and targets, so it can be called for other classes and other
# models. *Noise* is a random map; *wrong class* explains a digit that isn't there.


# %%
Explain = Callable[[nn.Module, Tensor], Tensor]
absent = there.argmin(1)


def explained_by(method: Callable[[nn.Module], TransformerMethod]) -> Explain:
    """Explains the images with a method."""
    return lambda model, target: method(model).attribute(images, target=target)


def noise(_: nn.Module, target: Tensor) -> Tensor:
    """Values that have to do with nothing, others for other targets."""
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(int(target.sum())))


def wrong_class(model: nn.Module, _: Tensor) -> Tensor:
    """Explains a digit that isn't there, whatever was asked for."""
    return AttnLRP(model).attribute(images, target=absent)


METHODS = {
    "TransformerAttribution": explained_by(TransformerAttribution),
    "GenericAttentionRelevance": explained_by(GenericAttentionRelevance),
    "ConservativeLRP": explained_by(ConservativeLRP),
    "AttnLRP": explained_by(AttnLRP),
    "AttentionRollout": explained_by(AttentionRollout),
    "noise": noise,
    "wrong class": wrong_class,
}
cells = torch.arange(len(images)) % 4  # ask for another quarter each time
target = quarters.gather(1, cells[:, None])[:, 0]
other = quarters.gather(1, (cells[:, None] + 1) % 4)[:, 0]

maps = {name: explain(model, target) for name, explain in METHODS.items()}
results: dict[str, dict[str, float]] = {name: {} for name in METHODS}

questions = [f"why {digit}?" for digit in target[:3].tolist()]
figure = image_grid(
    dict(zip(questions, images, strict=False)),
    {
        question: {name: values[number] for name, values in maps.items()}
        for number, question in enumerate(questions)
    },
)
display(Image.fromarray(to_array(figure)))

# %% [markdown]
# ## Does it point at the right place?
#
# If the place is known: the share of the positive relevance in the digit's quarter. On
# photographs, mosaics of several images do the same, or boxes and masks with `energy_inside`,
# `pointing_game` and `segmentation_scores`.

# %%
for name, values in maps.items():
    results[name]["in its quarter"] = grid_pointing_game(values, cells).mean().item()

# %% [markdown]
# ## Does the model depend on it?
#
# If no place is known: pixels turn black, the least relevant first. With a good map the answer is
# stable for a long time. `Curve` has the scores of each image at each step, and its area; digits
# are drawn on black, so black is zero here. If a curve rises, the first pixels were ink that is
# evidence *against* the digit, which signed maps recognise.

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for name, values in maps.items():
    curve = pixel_perturbation(
        model, images, values, target, baselines=0.0, order="negative", softmax=False
    )
    axis.plot(curve.fractions, curve.mean(), label=name, marker=".")
    results[name]["area of the score"] = curve.area().mean().item()
axis.set(xlabel="share of black pixels, least relevant first", ylabel="score of the digit")
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# ## Does it change with the class?
#
# The rank correlation of two classes' maps. A map that is the same for both can't explain why one
# of them was predicted, however well it outlines the objects.

# %%
for name, explain in METHODS.items():
    agree = class_sensitivity(maps[name], explain(model, other)).mean()
    results[name]["same for another class"] = agree.item()

# %% [markdown]
# ## Does it change with the model?
#
# `model_randomisation` randomises the layers, from the top down, and compares the maps. Maps that
# don't change show the picture, not the model. (Rollout reads no layer above the last attention,
# so the head alone changes nothing in it.)

# %%
layers = ["head", "blocks.2", "blocks.1", "blocks.0", "patch_embed"]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name in list(METHODS)[:5]:
    explain = METHODS[name]
    kept = model_randomisation(model, lambda m, e=explain: e(m, target), layers=layers)
    means = [agree.nanmean().item() for agree in kept.values()]
    axis.plot(layers, means, label=name, marker=".")
    results[name]["same without learning"] = means[-1]
axis.set(ylabel="rank correlation", xlabel="randomised, one after the other", ylim=(-0.3, 1.05))
axis.legend(fontsize=8)

# %% [markdown]
# ## Does it sum to the score?
#
# This only applies to methods that claim it: the LRP family distributes the score. `conservation`
# compares the sum of each map with the score: the points of a method that conserves lie on the
# line. Biases, the class token and the position embeddings contribute to the score, too, so
# neither method reaches it here. The maps of the other methods have no unit.

# %%
figure, axis = plt.subplots(figsize=(3.6, 3.2), layout="constrained")
for name in ("ConservativeLRP", "AttnLRP"):
    points = conservation(model, images, maps[name], target)
    axis.scatter(points.outputs, points.relevance, s=8, label=name)
    print(f"{name}: slope {points.slope():.2f}, correlation {points.correlation():.2f}")
axis.axline((0, 0), slope=1, color="grey", lw=1)
axis.set(xlabel="score", ylabel="sum of the relevance")
axis.legend(fontsize=8)

# %% [markdown]
# ## All together

# %%
columns = list(results["AttnLRP"])
print(" " * 26 + "".join(f"{column:>24}" for column in columns))
for name, row in results.items():
    print(f"{name:<26}" + "".join(f"{row.get(column, float('nan')):>24.2f}" for column in columns))

# %% [markdown]
# Read the controls first. If *noise* or the *wrong class* scores as well as a method, the measure
# is no evidence for the method. Rollout is the example here: it looks like an explanation, since
# it highlights ink, but it is the same for every class.
#
# And then? The order of the others depends on the model, so measure it on yours:
#
# - `TransformerAttribution` and `GenericAttentionRelevance`: what is *for* the class, token by
#   token, without signs; the second needs a third of the time, and has rules for cross-attention.
# - `ConservativeLRP` and `AttnLRP`: *for and against*, down to single pixels or the values of an
#   embedding; shares of the score.
# - `AttentionRollout` and `RawAttention`: where the model looks, whatever the class. No answer to
#   why.
#
# [Methods](../docs/methods.md) has them all with papers and costs, [Metrics](../docs/metrics.md)
# the measures for texts, too.

# %%
explaining = list(METHODS)[:4]
for name in explaining:
    assert results[name]["in its quarter"] > 0.35 > results["noise"]["in its quarter"]
    assert results[name]["area of the score"] > results["noise"]["area of the score"]
    assert results[name]["area of the score"] > results["wrong class"]["area of the score"]
    assert results[name]["same for another class"] < 0.9
    assert results[name]["same without learning"] < 0.6
assert results["AttentionRollout"]["same for another class"] > 0.999
