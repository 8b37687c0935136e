"""Models that others have trained, on data sets of the papers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from benchmarks.study.data.archive import lines
from benchmarks.study.models import device, parameters
from benchmarks.study.pictures import Pictures
from benchmarks.study.store import state_of
from benchmarks.study.subject import Subject, evenly
from benchmarks.study.texts import SUMMING, Texts
from captum_transformer.metrics import black

Transform = Callable[[Image.Image], Tensor]


class Logits(nn.Module):
    """A model of Transformers as a function from pixels to scores, as Captum's methods need it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(pixel_values=images).logits
        return scores


def subject_of(name: str, data: Path, samples: int) -> Subject:
    """A model by its name in timm, or by its name or folder in Transformers."""
    if name.startswith(("hf-hub:", "local-dir:")) or timm.is_model(name):
        model = timm.create_model(name, pretrained=True).eval()
        config = resolve_model_data_config(model)
        transform = create_transform(**config, is_training=False)
        dark = black(config["mean"], config["std"])
        return _pictures(name, model, transform, dark, data, samples)

    config = AutoConfig.from_pretrained(name)
    kind = str((config.architectures or [""])[0])
    if kind.endswith("ForImageClassification"):
        processor = AutoImageProcessor.from_pretrained(name)
        model = Logits(AutoModelForImageClassification.from_pretrained(name)).eval()
        dark = black(processor.image_mean, processor.image_std)
        return _pictures(name, model, partial(_processed, processor), dark, data, samples)
    if kind.endswith("ForSequenceClassification"):
        return _sentences(name, data, samples)
    raise ValueError(
        f"{name!r} is a {kind or config.model_type}: the study takes image and text classifiers, "
        "whose configuration names a ...ForImageClassification or ...ForSequenceClassification."
    )


def _processed(processor: Any, image: Image.Image) -> Tensor:
    pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
    return pixels


def _pictures(
    name: str, model: nn.Module, transform: Transform, dark: Tensor, data: Path, samples: int
) -> Subject:
    folder = data / "imagenet"
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    files = [(path, label) for label, each in enumerate(classes) for path in sorted(each.iterdir())]
    if not files:
        raise FileNotFoundError(f"{folder} must have a folder of pictures for each class.")
    chosen = evenly(len(files), samples)
    images = torch.stack([transform(Image.open(files[i][0]).convert("RGB")) for i in chosen])
    labels = torch.tensor([files[i][1] for i in chosen])
    with torch.no_grad():
        scores = torch.cat([model(part) for part in images.split(32)])
    if scores.shape[1] != len(classes):
        raise ValueError(
            f"{name} tells {scores.shape[1]} classes apart, but {folder} has {len(classes)}: "
            "the folders' order gives the labels, so there must be one for each class."
        )
    predicted = scores.argmax(1)
    targets = {"predicted": predicted, "target": labels}
    pictures = Pictures(model, images, targets, dark[:, None, None], device())
    return Subject(
        f"vision {name}",
        state_of(model, images),
        _facts(model, (predicted == labels).double().mean().item(), len(labels)),
        pictures.methods(),
        {"perturbation": lambda maps: pictures.perturbation(maps, labels)},
    )


def _sentences(name: str, data: Path, samples: int) -> Subject:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    if tokenizer.unk_token_id is None:
        raise ValueError(f"The tokenizer of {name} has no token for unknown words to cover with.")
    path = data / "SST-2" / "dev.tsv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: lines of a sentence, a tab, and 0 or 1.")
    rows = [line.rsplit("\t", 1) for line in lines(path)]
    rows = [(text, int(label)) for text, label in rows if label in ("0", "1")]
    rows = [rows[i] for i in evenly(len(rows), samples)]
    encoded = [
        tokenizer(text, return_special_tokens_mask=True, truncation=True) for text, _ in rows
    ]
    labels = torch.tensor([label for _, label in rows])
    texts = Texts(
        model,
        [torch.tensor(each["input_ids"]) for each in encoded],
        [torch.tensor(each["special_tokens_mask"]).bool() for each in encoded],
        {"label": labels},
        tokenizer.unk_token_id,
        device(),
    )
    right = 0
    with torch.no_grad():
        for part in texts.batches():
            scores = texts.scores(texts.ids[part].to(device()), texts.mask[part].to(device()))
            right += int((scores.argmax(1).cpu() == labels[part]).sum())
    return Subject(
        f"sentiment {name}",
        state_of(model, texts.ids),
        _facts(model, right / len(rows), len(rows)),
        texts.methods(),
        {
            "activation": lambda maps: texts.activation(maps["label"], labels),
            "removal": lambda maps: texts.removal(maps["label"], labels),
            "conservation": lambda maps: texts.conservation(maps["label"], "label"),
        },
        {"conservation": SUMMING},
    )


def _facts(model: nn.Module, accuracy: float, samples: int) -> dict[str, str]:
    return {
        "model": f"{parameters(model):,} parameters",
        "held-out accuracy": f"{accuracy:.1%} of the samples",
        "samples": f"{samples}, whatever the model says of them",
    }
