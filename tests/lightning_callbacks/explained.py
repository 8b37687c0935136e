"""A model and images to explain with the trainer, in this process or in several others."""

import importlib

import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

import lightning_callbacks

CLASSES = 5


def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=CLASSES, img_size=32).double().eval()


def images():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(11, 3, 32, 32, generator=generator, dtype=torch.float64)
    return TensorDataset(pixels, torch.arange(11) % CLASSES)


def explainer(pl, *args, **kwargs):
    name = "ExplainerModule" if pl.__name__ == "pytorch_lightning" else "LightningExplainerModule"
    return getattr(lightning_callbacks, name)(*args, **kwargs)


def predict(pl, options, module, loader, writer, **more):
    trainer = pl.Trainer(**{**options, **more}, logger=False, callbacks=[writer])
    trainer.predict(module, loader, return_predictions=False)


def predict_in_two_processes(flavor, options, method, folder, writing):
    """Explains what is left of the images; to be run in a process of its own."""
    pl = importlib.import_module(flavor)
    writer = lightning_callbacks.RelevanceWriter(folder, **writing)
    loader = DataLoader(images(), batch_size=2, sampler=writer.remaining(images()))
    module = explainer(pl, vit(), method, tokens=True)
    predict(pl, options, module, loader, writer, devices=2, strategy="ddp_fork")
