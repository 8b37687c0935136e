# %% [markdown]
# # 3 Watching a training, with Lightning and TensorBoard
#
# When does a model start to look at the right place, and does it ever? `AttributionMonitor`
# explains the same validation samples after every validation and logs the pictures, without
# changing the training by a single bit. Here a small ViT learns in a few seconds to distinguish
# four patterns, hidden at one of nine places in a noisy image.
#
# The callback takes any `LightningModule`: for a pretrained model, put
# `timm.create_model("vit_base_patch16_224", pretrained=True)` into yours.

# %%
import io
import logging
import warnings

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import timm
import torch
from matplotlib.image import imread
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from captum_transformer import ConservativeLRP, TransformerAttribution
from lightning_callbacks import AttributionMonitor

pl.seed_everything(0, verbose=False)
torch.set_num_threads(1)  # the model is so small that more threads mostly wait for each other
logging.disable(logging.INFO)
warnings.filterwarnings("ignore", message=".*does not have many workers|.*LeafSpec")

# %% [markdown]
# ## Data and module
#
# Both are as usual; the callback has no requirements.

# %%
NAMES = ["rows", "columns", "diagonals", "checks"]
CELL = 16


def hidden_patterns(count: int, seed: int) -> tuple[TensorDataset, Tensor]:
    """Images ``(count, 1, 48, 48)`` with their labels, and where each pattern is, of nine cells."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.arange(CELL) * torch.pi / 2
    y, x = wave[:, None], wave[None]
    patterns = torch.stack(
        [(y + 0 * x).sin(), (0 * y + x).sin(), (y + x).sin(), (y + 0.7).sin() * (x + 0.7).sin()]
    )
    labels = torch.randint(len(patterns), (count,), generator=generator)
    places = torch.randint(9, (count,), generator=generator)
    cells = torch.randn(count, 3, 3, CELL, CELL, generator=generator)
    cells[torch.arange(count), places // 3, places % 3] += 2 * patterns[labels]
    images = cells.transpose(2, 3).reshape(count, 1, 3 * CELL, 3 * CELL)
    return TensorDataset(images, labels), places


class PatternFinder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=3 * CELL, patch_size=8, in_chans=1, embed_dim=48,
            depth=2, num_heads=4, mlp_ratio=2, num_classes=len(NAMES),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        self.log("val/accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


train, _ = hidden_patterns(1500, seed=1)
held_out, places = hidden_patterns(200, seed=2)

# %% [markdown]
# ## The monitor
#
# It takes methods by name, each a function from the module to a Captum attribution, including
# Captum's own. Two classes of each sample are explained: its label and the current prediction.

# %%
monitor = AttributionMonitor(
    methods={"chefer": TransformerAttribution, "lrp": ConservativeLRP},
    classes=("label", "predicted"),
    num_samples=3,
    class_names=NAMES,
)
logger = TensorBoardLogger("runs", name="patterns")
trainer = pl.Trainer(
    max_epochs=3,
    val_check_interval=0.25,  # the monitor counts validations, whenever they come
    accelerator="cpu",
    logger=logger,
    callbacks=[monitor],
    enable_checkpointing=False,
    enable_model_summary=False,
    enable_progress_bar=False,
    log_every_n_steps=10,
)
module = PatternFinder()
trainer.fit(module, DataLoader(train, batch_size=25, shuffle=True), DataLoader(held_out, 100))
accuracy = trainer.callback_metrics["val/accuracy"].item()
print(f"{accuracy:.0%} of the held-out patterns are found")
assert accuracy > 0.8

# %% [markdown]
# ## What TensorBoard shows
#
# `tensorboard --logdir runs` has each sample, slot and method as one card with a slider over the
# steps, and pages for the numbers. The same can be read back from the log:

# %%
log = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
for tag in log.Tags()["images"][:4]:
    print(tag, [event.step for event in log.Images(tag)])
print(*[tag for tag in log.Tags()["scalars"] if tag.startswith("attribution")], sep="\n")

# %% [markdown]
# One sample during the training, with the two methods below each other:

# %%
steps = (15, 30, 60, 180)
figure, axes = plt.subplots(2, len(steps), figsize=(13, 4.4), layout="constrained")
for row, name in zip(axes, ("chefer", "lrp"), strict=True):
    events = {e.step: e for e in log.Images(f"attribution_sample_0/label/{name}")}
    for axis, step in zip(row, steps, strict=True):
        axis.imshow(imread(io.BytesIO(events[step].encoded_image_string)))
        axis.set_title(f"{name}, step {step}", fontsize=9)
        axis.axis("off")

# %% [markdown]
# ## Numbers
#
# How much the maps still change between two validations (rank correlation, one is *not at all*):

# %%
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
for name in ("chefer", "lrp"):
    events = log.Scalars(f"attribution/rank_correlation/{name}")
    axis.plot([e.step for e in events], [e.value for e in events], marker="o", label=name)
axis.legend(frameon=False)
_ = axis.set(xlabel="step", ylabel="rank correlation", ylim=(-0.1, 1.05))

# %% [markdown]
# ## Does it look at the right place?
#
# The monitor shows pictures; [metrics](../docs/reference/metrics.md) are numbers. This is the
# share of the label's relevance in the cell with the pattern, where chance is one ninth:

# %%
images, labels = held_out.tensors
module.eval()
for method in (TransformerAttribution(module), ConservativeLRP(module)):
    relevance = method.attribute(images, target=labels).clamp(min=0)
    by_cell = relevance.view(-1, 3, CELL, 3, CELL).sum((2, 4)).flatten(1)
    share = (by_cell.gather(1, places[:, None])[:, 0] / by_cell.sum(1)).nan_to_num(0).mean()
    print(f"{type(method).__name__:<24}{share:.0%}")
    assert share > 2 / 9

# %% [markdown]
# [Watching explanations](../docs/monitor.md) describes all options: other loggers, several
# processes, half precision, deletion and insertion curves, YAML. `tutorials/quickstart.py` trains
# longer, and compares ten methods.
