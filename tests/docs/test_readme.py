"""The examples of README.md run, with the outputs that it shows."""

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from captum_transformer.cli import names
from tests.public_methods import EVERY, OF_SCORES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = timm.create_model("test_vit", num_classes=3, img_size=32)

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, _):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, _):
        self.log("val/loss", self.training_step(batch, _))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture
def what_the_reader_has():
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4) % 3), batch_size=2)
    return {"module": Classifier(), "train_loader": loader, "val_loader": loader}


def test_there_are_examples_for_images_text_generation_and_training():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize(
    "block", BLOCKS, ids=["one line", "images", "text", "generation", "training"]
)
def test_the_examples_run(block, what_the_reader_has, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # untrained models may end a text at random
    namespace = dict(what_the_reader_has)
    exec(block, namespace)

    for name, shape in re.findall(r"^(\w+) = .*# \((\d+(?:, \d+)*)\)$", block, flags=re.MULTILINE):
        assert str(tuple(namespace[name].shape)) == f"({shape})"


def test_each_method_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)", README, flags=re.MULTILINE)
    assert set(rows) >= EVERY


@pytest.mark.parametrize("program", ["tutorials/quickstart.py", "-m pytest"])
def test_each_command_is_one_line_that_needs_nothing_before(program):
    commands = re.findall(r"^```sh\n(.*?)\n```$", README, flags=re.DOTALL | re.MULTILINE)
    (command,) = [command for command in commands if program in command]
    assert command.startswith("python3 -m venv .venv && .venv/bin/python -m pip install -e ")


def test_linked_files_exist():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "docs/images/explanations.png" in linked
    assert [name for name in linked if not (ROOT / name).is_file()] == []


def test_each_method_of_scores_can_be_called_on_the_command_line():
    assert set(names.METHODS) == OF_SCORES


@pytest.mark.parametrize(
    "program",
    [
        "tutorials/quickstart.py",
        "benchmarks/cost/contenders.py",
        "benchmarks/model_matrix/methods.py",
        "benchmarks/study/methods.py",
    ],
)
def test_each_method_of_scores_is_shown_and_timed(program):
    source = (ROOT / program).read_text(encoding="utf-8")
    assert {name for name in OF_SCORES if f'"{name}": {name},' not in source} == set()
