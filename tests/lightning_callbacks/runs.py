"""Trainings with a monitor, and what is found in their logs."""

import io

import numpy as np
from captum.attr import IntegratedGradients, Saliency
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.lightning_callbacks.models import classifier, loaders

METHODS = {"saliency": Saliency, "integrated": IntegratedGradients}


def fit(pl, options, monitor, module=None, data=None, **more):
    folder = options["default_root_dir"]
    more.setdefault("logger", pl.loggers.TensorBoardLogger(folder, name="run"))
    trainer = pl.Trainer(**{**options, "callbacks": [monitor], "max_epochs": 2, **more})
    trainer.fit(classifier(pl) if module is None else module, *(data or loaders()))
    return trainer


def read(trainer):
    everything = dict.fromkeys(("images", "scalars", "histograms", "tensors"), 0)
    return EventAccumulator(trainer.logger.log_dir, size_guidance=everything).Reload()


def decode(event):
    return (imread(io.BytesIO(event.encoded_image_string))[..., :3] * 255).round().astype(np.uint8)


def steps(events):
    return [event.step for event in events]
