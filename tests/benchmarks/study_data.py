"""Tiny random data that the study reads, a run on it, and the methods that are in its results."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from transformers import AlbertConfig, AlbertForMaskedLM

from benchmarks.study import __main__ as program
from benchmarks.study.data import clothing
from benchmarks.study.methods import CAPTUM, OF_STATES, RANDOM, STATES, TRANSFORMER
from benchmarks.study.tasks import patching

METHODS = {*TRANSFORMER, *CAPTUM, RANDOM}


OF_TEXTS = METHODS | {name + STATES for name in OF_STATES}


TREES = [
    "(4 (2 A) (3 (3 very) (4 good)))",
    "(0 (2 A) (1 (2 very) (0 bad)))",
    "(3 (3 Good) (2 .))",
    "(1 (1 Bad) (2 .))",
    "(2 (2 So) (2 so))",
]
RANDOM_STATE = np.random.default_rng(0)


def noise(path, size, channels=3):
    shape = (*size, channels) if channels else size
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM_STATE.integers(0, 256, shape, dtype=np.uint8)).save(path)


def make_all(folder):
    """Writes everything that the study reads."""
    make_objects(folder / "tinyimagenet10_boxes")
    make_clothing(folder / "ccp_160")
    digits = np.arange(40) % 10
    images = RANDOM_STATE.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(folder / "mnist.npz", x_train=images, y_train=digits, x_test=images, y_test=digits)
    make_texts(folder)
    make_molecules(folder / MOLECULES)


MOLECULES = "rxnmapper_albert/albert_heads_8_uspto_all_1310k"


def make_objects(folder):
    rows = ["split,file,label,x0,y0,x1,y1"]
    for split, count in (("train", 20), ("val", 10)):
        for number in range(count):
            noise(folder / split / f"{number}.png", (64, 64))
            rows.append(f"{split},{number}.png,{number % 10},8,8,39,39")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")


def make_clothing(folder):
    names = [name for members in clothing.CLASSES.values() for name in members]
    (folder / "masks").mkdir(parents=True)
    for number in range(8):
        noise(folder / "images" / f"{number:04}.jpg", (160, 160))
        mask = np.zeros((160, 160), np.uint8)
        for index in range(8):  # one class in each strip
            mask[:, 20 * index : 20 * index + 20] = (index + number) % len(names) + 1
        mask[:, :4] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number:04}.png")
    lines = ["0\tnull", *(f"{i}\t{name}" for i, name in enumerate(names, start=1))]
    (folder / "labels.txt").write_text("\n".join(lines), encoding="utf-8")


def make_texts(folder):
    with zipfile.ZipFile(folder / "sst_trees.zip", "w") as archive:  # as it is downloaded
        for split in ("train", "dev"):
            archive.writestr(f"{split}.txt", "\n".join(3 * TREES))
    reviews = folder / "eraser_movies"
    (reviews / "docs").mkdir(parents=True)
    for split in ("train", "val"):
        lines = []
        for number in range(4):
            name = f"{split}_{number}.txt"
            (reviews / "docs" / name).write_text(
                "this is a\nvery good movie .\n" * 5, encoding="utf-8"
            )
            evidence = {"docid": name, "start_token": 3, "end_token": 5}
            label = "POS" if number % 2 else "NEG"
            entry = {"annotation_id": name, "classification": label, "evidences": [[evidence]]}
            lines.append(json.dumps(entry))
        (reviews / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def make_molecules(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"cCON()=123n>.", ">>"]
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AlbertConfig(
        vocab_size=len(tokens), embedding_size=8, intermediate_size=16, **settings
    )
    AlbertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")


def run(data, out, *further):
    """Runs the study; returns what it wrote for each task."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patching, "DEPTHS", (1, 2))  # each layer is patched by itself
        program.main(
            ["--data", str(data), "--out", str(out), "--samples", "4", "--threads", "1", *further]
        )
    return {
        record["name"]: record
        for record in json.loads((out / "study.json").read_text(encoding="utf-8"))
    }
