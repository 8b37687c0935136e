"""Does relevance sum up to the score of a deep model with trained weights?"""

import zipfile
from functools import partial
from pathlib import Path

import torch
from transformers import AlbertForMaskedLM

from benchmarks.study.data import molecules
from benchmarks.study.data.texts import padded
from benchmarks.study.models import device, parameters
from benchmarks.study.store import Maps, state_of
from benchmarks.study.subject import Subject
from benchmarks.study.texts import SUMMING, Texts

NAME, SAMPLES, SEEDS = "molecules", 48, 1  # others trained it
FOLDER, ARCHIVE = "albert_heads_8_uspto_all_1310k", "rxnmapper_albert"


def unpacked(data: Path, models: Path) -> Path:
    """A folder on disk, as ``from_pretrained`` needs one."""
    if (data / ARCHIVE / FOLDER).is_dir():
        return data / ARCHIVE / FOLDER
    if not (models / FOLDER).is_dir():
        with zipfile.ZipFile(data / f"{ARCHIVE}.zip") as archive:
            archive.extractall(models)
    return models / FOLDER


def subject(
    data: Path,
    models: Path,
    samples: int,
    epochs: int | None = None,  # noqa: ARG001 - nothing to train
    seed: int = 0,
) -> Subject:
    """The score of what the model takes the masked token for."""
    folder = unpacked(data, models)
    model = AlbertForMaskedLM.from_pretrained(folder).eval()
    ids, places, truth = molecules.masked(folder, samples)
    batch, mask = padded(ids)
    with torch.no_grad():
        scores = model(input_ids=batch, attention_mask=mask).logits
    predicted = scores[torch.arange(len(places)), places].argmax(1)
    special = [torch.zeros(len(text), dtype=torch.bool) for text in ids]
    unknown = molecules.vocabulary(folder)["[UNK]"]
    targets = {"predicted": torch.stack([places, predicted], 1)}
    texts = Texts(model, ids, special, targets, unknown, device())
    of_words = texts.methods()

    def both(name: str) -> Maps:
        return {
            "words": of_words[name]()["predicted"],
            "all": texts.of_first_state(name)["predicted"],
        }

    return Subject(
        NAME,
        state_of(model, texts.ids),
        {
            "model": f"ALBERT, 12 layers that share weights, {parameters(model):,} parameters, "
            "trained on reactions by others",
            "held-out accuracy": f"{(predicted == truth).double().mean():.1%} of the masked tokens",
            "samples": f"{len(ids)} masked tokens in {len(molecules.SMILES)} molecules and "
            "reactions; the score is the logit of the predicted token",
        },
        {name: partial(both, name) for name in of_words if name in SUMMING},
        {
            "conservation": lambda maps: texts.conservation(maps["all"], "predicted"),
            "conservation, words only": lambda maps: texts.conservation(maps["words"], "predicted"),
        },
        seed=seed,
    )
