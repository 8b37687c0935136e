"""Small Lightning modules with everything that a careless callback would disturb."""

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

CLASSES = 3
SIZE = 8


class Blobs(Dataset):
    """Noise with a bright corner that depends on the class."""

    def __init__(self, count, seed, form="tuple"):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)
        self.images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
        for image, label in zip(self.images, self.labels.tolist(), strict=True):
            row, column = divmod(label, 2)
            image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 2
        self.form = form

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image, label = self.images[index], self.labels[index]
        if self.form == "tuple":
            return image, label
        if self.form == "mapping":
            return {"pixel_values": image, "labels": label}
        if self.form == "multi-hot":
            hot = F.one_hot(label, CLASSES).float()
            hot[0] = 1
            return image, hot if index else torch.zeros(CLASSES)
        raise AssertionError(self.form)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(8 * SIZE * SIZE, CLASSES),
    )


def classifier(pl, model=None, loss=F.cross_entropy):
    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network() if model is None else model
            # A part that stays in evaluation mode while the rest trains.
            self.frozen = nn.Sequential(nn.BatchNorm2d(3)).requires_grad_(False)
            self.frozen.training = False

        def forward(self, x):
            return self.model(x + 0 * self.frozen(x))

        def _read(self, batch):
            if isinstance(batch, dict):
                return batch["pixel_values"], batch["labels"]
            return batch

        def training_step(self, batch, batch_idx):
            x, y = self._read(batch)
            return loss(self(x), y)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            x, y = self._read(batch)
            self.log("val_loss", loss(self(x), y))

        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    torch.manual_seed(0)
    return Classifier()


def loaders(form="tuple", batch_size=4):
    train = DataLoader(Blobs(32, 1, form), batch_size=batch_size, shuffle=True)
    val = DataLoader(Blobs(10, 2, form), batch_size=batch_size)
    return train, val


def tiny_vit():
    """A model and two images."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5, img_size=64).double().eval()
    return model, torch.randn(2, 3, 64, 64, dtype=torch.float64)


def tiny_swin():
    """A model whose features come last in a grid, and two images."""
    torch.manual_seed(0)
    model = timm.models.SwinTransformer(
        img_size=56, num_classes=5, embed_dim=16, depths=(2, 2), num_heads=(2, 2)
    )
    return model.double().eval(), torch.randn(2, 3, 56, 56, dtype=torch.float64)
