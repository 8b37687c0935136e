"""A monitor and its methods from a YAML file, through Lightning's own command line."""

import inspect
import sys

import pytest
from captum.attr import IntegratedGradients

from captum_transformer import TransformerAttribution
from lightning_callbacks import AttributionMonitor, ExplainerModule, RelevanceWriter
from tests.lightning_callbacks.models import CLASSES, SIZE, classifier, loaders
from tests.lightning_callbacks.runs import read

CONFIG = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  default_root_dir: {folder}
  logger:
    class_path: {namespace}.loggers.TensorBoardLogger
    init_args: {{save_dir: {folder}}}
  callbacks:
    - class_path: lightning_callbacks.AttributionMonitor
      init_args:
        methods:
          chefer:
            class_path: captum_transformer.TransformerAttribution
            init_args: {{start_layer: 1}}
          integrated:
            class_path: captum.attr.IntegratedGradients
        classes: [label, predicted, 2]
        num_samples: 2
        heatmap: {{sign: positive, smooth: true}}
        faithfulness: {{steps: 2}}
        precision: float32
        prefix: why
        on_error: raise
"""


@pytest.mark.both
@pytest.mark.filterwarnings("ignore")
def test_fit_from_yaml(pl, tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    timm = pytest.importorskip("timm.models")
    cli = pytest.importorskip(f"{pl.__name__}.cli")

    class Model(type(classifier(pl))):
        def __init__(self, width: int = 16):
            super().__init__()
            self.model = timm.VisionTransformer(
                img_size=SIZE,
                patch_size=4,
                num_classes=CLASSES,
                embed_dim=width,
                depth=2,
                num_heads=2,
            )

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loaders()[0]

        def val_dataloader(self):
            return loaders()[1]

    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(folder=tmp_path, namespace=pl.__name__), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(config)])
    trainer = cli.LightningCLI(Model, Data).trainer

    (monitor,) = [c for c in trainer.callbacks if isinstance(c, AttributionMonitor)]
    made = {name: make(trainer.lightning_module) for name, make in monitor.methods.items()}
    assert isinstance(made["chefer"], TransformerAttribution)
    assert made["chefer"].start_layer == 1
    assert isinstance(made["integrated"], IntegratedGradients)
    assert set(read(trainer).Tags()["images"]) == {
        f"why_sample_{sample}/{slot}/{method}"
        for sample in range(2)
        for slot in ("label", "predicted", "class_2")
        for method in made
    }


@pytest.mark.parametrize("made", [AttributionMonitor, ExplainerModule, RelevanceWriter])
def test_a_file_can_set_each_option(made):
    """Parsers leave out what has a type that they don't know."""
    parser = pytest.importorskip("jsonargparse").ArgumentParser()
    known = parser.add_class_arguments(made, "made")
    assert [name.removeprefix("made.") for name in known] == [*inspect.signature(made).parameters]


@pytest.mark.parametrize("ids", [[1, 5], None])
def test_ids_from_a_file(ids):
    parser = pytest.importorskip("jsonargparse").ArgumentParser()
    parser.add_class_arguments(AttributionMonitor, "monitor", skip={"methods"})
    assert parser.parse_object({"monitor": {"off_scale_ids": ids}}).monitor.off_scale_ids == ids
