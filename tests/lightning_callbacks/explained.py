"""A model and images to explain with the trainer, in this process or in several others."""

import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import timm
import torch
from torch.utils.data import TensorDataset

import lightning_callbacks

CLASSES = 5
LIMIT_S = 240


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


def predict_in_two_processes(pl, options, method, folder, **writing):
    """Explains what is left of the images in two forks of a process that has no threads.

    The process of the tests has threads, of Arrow for one, whose locks a fork may find closed.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context) as pool:
        arguments = (pl.__name__, options, method, folder, writing)
        failure = pool.submit(_predict_in_two_forks, *arguments).result(LIMIT_S)
    if failure is not None:
        raise RuntimeError(failure)


def _predict_in_two_forks(flavor, options, method, folder, writing):
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    # Another trainer's, if it left one: two trainings must not meet at one port.
    os.environ.pop("MASTER_PORT", None)
    pl = importlib.import_module(flavor)
    writer = lightning_callbacks.RelevanceWriter(folder, **writing)
    loader = DataLoader(images(), batch_size=2, sampler=writer.remaining(images()))
    module = explainer(pl, vit(), method, tokens=True)
    try:
        predict(pl, options, module, loader, writer, devices=2, strategy="ddp_fork")
    except Exception as reason:
        return str(reason)
    return None
