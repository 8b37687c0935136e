"""Batches that are mappings, and modules that pass them on by name, in a real training."""

import io

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from captum_transformer import ConservativeLRP, GenericAttentionRelevance, describe
from captum_transformer.visualization import panel
from lightning_callbacks import AttributionMonitor
from tests.attr.tiny_models import PixelsAndIds, images, timm_vit
from tests.lightning_callbacks.samples.named import bert, reader, texts

METHODS = {"generic": GenericAttentionRelevance, "lrp": ConservativeLRP}


class Multimodal(nn.Module):
    """Takes images and texts by name, and returns a dict, like models of Transformers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = PixelsAndIds()

    def forward(self, pixel_values=None, input_ids=None, scale=None, labels=None):
        logits = self.model(pixel_values, input_ids) * scale[:, None]
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def images_with_texts():
    samples = [
        {
            "input_ids": text["input_ids"],
            "pixel_values": image.float(),
            "scale": torch.tensor(1.5),
            "labels": text["labels"],
        }
        for text, image in zip(texts().dataset, images(4), strict=True)
    ]
    return DataLoader(samples, batch_size=2)


def fit(pl, options, monitor, module, data):
    logger = pl.loggers.TensorBoardLogger(options["default_root_dir"])
    trainer = pl.Trainer(**options, callbacks=[monitor], max_epochs=2, logger=logger)
    trainer.fit(module, data, data)
    return EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0}).Reload()


@pytest.mark.parametrize("form", ["whole batch", "signature"])
def test_texts_with_labels_in_the_batch(pl, trainer_options, form):
    shown = []

    def to_tokens(ids):
        shown.append(ids.tolist())
        return [f"t{i}" for i in ids.tolist()]

    monitor = AttributionMonitor(METHODS, num_samples=3, to_tokens=to_tokens, on_error="raise")
    module = reader(pl, bert(), form)
    events = fit(pl, trainer_options, monitor, module, texts())

    assert set(events.Tags()["images"]) == {
        f"attribution_sample_{sample}/{slot}/{method}"
        for sample in range(3)
        for slot in ("label", "predicted")
        for method in METHODS
    }
    assert shown[0] == texts().dataset[0]["input_ids"].tolist()
    for method in METHODS:
        (event,) = events.Scalars(f"attribution/rank_correlation/{method}")
        assert -1 <= event.value <= 1

    # The mask is passed: padding has no relevance, and the delta is that of the final model.
    samples = [texts().dataset[i] for i in range(3)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    result, delta = ConservativeLRP(module.model).attribute(
        {"input_ids": batch["input_ids"]},
        batch["labels"],
        additional_forward_kwargs={"attention_mask": batch["attention_mask"]},
        return_convergence_delta=True,
    )
    assert (result["input_ids"][batch["attention_mask"] == 0] == 0).all()
    logged = AttributionMonitor(METHODS, ("label",), num_samples=3, on_error="raise", prefix="last")
    trainer = pl.Trainer(
        **trainer_options,
        callbacks=[logged],
        logger=pl.loggers.TensorBoardLogger(trainer_options["default_root_dir"], name="last"),
    )
    trainer.validate(module, texts(), verbose=False)
    events = EventAccumulator(trainer.logger.log_dir, size_guidance={"scalars": 0}).Reload()
    (event,) = events.Scalars("last/convergence_delta/lrp")
    assert event.value == pytest.approx(delta.abs().mean().item(), rel=1e-4)


def test_images_and_texts_have_a_picture_each(pl, trainer_options):
    module = reader(pl, Multimodal(), "whole batch")
    monitor = AttributionMonitor(METHODS, ("label",), num_samples=3, on_error="raise", scale="own")
    data = images_with_texts()
    events = fit(pl, trainer_options, monitor, module, data)

    assert set(events.Tags()["images"]) == {
        f"attribution_sample_{sample}/label/{method}/{part}"
        for sample in range(3)
        for method in METHODS
        for part in ("pixel_values", "input_ids")
    }
    sample = data.dataset[1]
    batch = {key: value[None] for key, value in sample.items() if key != "labels"}
    label = int(sample["labels"])
    module.eval()
    logits = module(**batch)["logits"]
    named = {key: batch[key] for key in ("pixel_values", "input_ids")}
    result = GenericAttentionRelevance(module).attribute(
        named, label, additional_forward_kwargs={"scale": batch["scale"]}
    )
    likely, predicted = logits.softmax(1)[0].max(0)
    caption = (
        f"generic → {label}, p = {logits.softmax(1)[0, label]:.2f}\n"
        f"label: {label}\npredicted: {int(predicted)} ({likely:.2f})"
    )
    note = "scale of this step alone"
    relevance = result["pixel_values"][0]
    (grid,) = describe(
        module, named, additional_forward_kwargs={"scale": batch["scale"]}
    ).grids.values()
    expected = panel(
        sample["pixel_values"], relevance, caption, font_scale=2.0, note=note, grid=grid
    )
    event = events.Images("attribution_sample_1/label/generic/pixel_values")[-1]
    picture = (imread(io.BytesIO(event.encoded_image_string))[..., :3] * 255).round()
    # Batch sizes differ, so the last bits may differ.
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= 2


class Scaled(nn.Module):
    """A Transformer that takes images by name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm_vit().float()

    def forward(self, scale=None, pixel_values=None, labels=None):
        logits = self.vit(pixel_values) * scale[:, None]
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}


def scaled_images():
    generator = torch.Generator().manual_seed(0)
    samples = [
        {"pixel_values": image.float(), "scale": torch.rand((), generator=generator), "labels": i}
        for i, image in enumerate(images(4))
    ]
    return DataLoader(samples, batch_size=2)


def by_position_and_name(module):
    return Saliency(lambda pixel_values, scale: module(pixel_values=pixel_values, scale=scale))


def test_methods_of_captum_take_inputs_by_position(pl, trainer_options):
    class Placed(type(reader(pl, Scaled(), "whole batch"))):
        def forward(self, pixel_values, scale=None, labels=None):
            return self.model(scale, pixel_values, labels)

    methods = {
        "saliency": Saliency,
        "own": by_position_and_name,
        "smooth": lambda module: NoiseTunnel(Saliency(module)),
        "generic": GenericAttentionRelevance,
    }
    monitor = AttributionMonitor(methods, ("label",), num_samples=3, on_error="raise")
    events = fit(pl, trainer_options, monitor, Placed(), scaled_images())

    assert len(events.Tags()["images"]) == 3 * len(methods)
    correlations = {
        method: [event.value for event in events.Scalars(f"attribution/rank_correlation/{method}")]
        for method in methods
    }
    assert correlations["saliency"] == correlations["own"]


def test_methods_of_captum_explain_how_to_pass_inputs_by_name(pl, trainer_options):
    methods = {
        "saliency": Saliency,
        "own": by_position_and_name,
        "generic": GenericAttentionRelevance,
    }
    monitor = AttributionMonitor(methods, ("label",), num_samples=3)
    module = reader(pl, Scaled(), "whole batch")
    with pytest.warns(UserWarning, match=r"lambda pixel_values, scale: module\(pixel_values=pix"):
        events = fit(pl, trainer_options, monitor, module, scaled_images())

    methods = {tag.split("/")[-1] for tag in events.Tags()["images"]}
    assert methods == {"own", "generic"}
