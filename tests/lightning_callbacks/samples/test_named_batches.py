"""Batches that are mappings, and modules that pass them on by name, in a real training."""

import io

import numpy as np
import pytest
import torch
import transformers
from captum.attr import NoiseTunnel, Saliency
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from captum_transformer import ConservativeLRP, GenericAttentionRelevance, describe
from captum_transformer.visualization import panel
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.monitor.texts import Texts
from tests.attr.tiny_models import PixelsAndIds, images, timm_vit

METHODS = {"generic": GenericAttentionRelevance, "lrp": ConservativeLRP}


def bert():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=12,
            num_labels=3,
        )
    )


class Multimodal(nn.Module):
    """Takes images and texts by name, as models of Transformers do, and returns what they do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = PixelsAndIds()

    def forward(self, pixel_values=None, input_ids=None, scale=None, labels=None):
        logits = self.model(pixel_values, input_ids) * scale[:, None]
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def reader(pl, model, form):
    class Reader(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, batch_idx):
            return self(**batch)["loss"]

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self(**batch)["loss"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class WholeBatch(Reader):
        def forward(self, **batch):
            return self.model(**batch)

    class Signature(Reader):
        def forward(self, input_ids, attention_mask=None, labels=None):
            return self.model(input_ids, attention_mask=attention_mask, labels=labels)

    return {"whole batch": WholeBatch, "signature": Signature}[form]()


def texts(padded=7):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in (7, 4, 6, 5):
        ids = torch.randint(1, 30, (length,), generator=generator)
        ids = nn.functional.pad(ids, (0, padded - length))
        mask = (ids > 0).long()
        samples.append({"input_ids": ids, "attention_mask": mask, "labels": ids[0] % 3})
    return DataLoader(samples, batch_size=2)


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


def test_tokens_can_be_left_out_of_the_scale(pl, trainer_options):
    first = int(texts().dataset[0]["input_ids"][0])
    kwargs = {"num_samples": 1, "on_error": "raise"}
    monitors = [
        AttributionMonitor(METHODS, ("label",), prefix="all", **kwargs),
        AttributionMonitor(METHODS, ("label",), prefix="some", off_scale_ids=[first], **kwargs),
    ]
    logger = pl.loggers.TensorBoardLogger(trainer_options["default_root_dir"])
    trainer = pl.Trainer(**trainer_options, callbacks=monitors, logger=logger)
    trainer.validate(reader(pl, bert(), "signature"), texts(), verbose=False)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    for method in METHODS:
        every, some = (
            events.Images(f"{prefix}_sample_0/label/{method}")[0].encoded_image_string
            for prefix in ("all", "some")
        )
        assert every != some


class Tokenizer:
    """Two ids to a word; 0 is special, 1 is unknown."""

    all_special_ids, unk_token_id = (0, 1), 1

    def convert_ids_to_tokens(self, ids):
        return [f"token {each}" for each in ids]

    def decode(self, ids, **_):
        return "".join(f" w{each // 2}" if each % 2 == 0 else "x" for each in ids)


IDS, VALUES = torch.tensor([0, 2, 3, 1, 8]), torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0])


def test_a_tokenizer_shows_words_without_special_tokens_in_the_scale():
    words, values, off_scale = Texts(Tokenizer()).shown(IDS, VALUES)
    assert words == ["token 0", "w1xx", "w4"]
    assert values.tolist() == [9, 6, 4]
    assert off_scale == [True, False, False]


def test_what_was_asked_for_goes_before_the_tokenizer():
    texts = Texts(Tokenizer(), lambda ids: [f"<{each}>" for each in ids.tolist()], [8])
    words, values, off_scale = texts.shown(IDS, VALUES)
    assert words == ["<0>", "<2>", "<3>", "<1>", "<8>"]
    assert values is VALUES
    assert off_scale == [False] * 4 + [True]
    assert not any(Texts(Tokenizer(), off_scale_ids=()).shown(IDS, VALUES).off_scale)


def test_what_is_no_tokenizer_shows_ids():
    words, _, off_scale = Texts().with_tokenizer(object()).shown(IDS, VALUES)
    assert words == ["0", "2", "3", "1", "8"]
    assert not any(off_scale)


def test_a_monitor_with_a_tokenizer_logs_words(pl, trainer_options):
    monitor = AttributionMonitor(
        METHODS, ("label",), num_samples=1, on_error="raise", tokenizer=Tokenizer()
    )
    logger = pl.loggers.TensorBoardLogger(trainer_options["default_root_dir"])
    trainer = pl.Trainer(**trainer_options, callbacks=[monitor], logger=logger)
    trainer.validate(reader(pl, bert(), "signature"), texts(), verbose=False)
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    ids = texts().dataset[0]["input_ids"]
    words, _, _ = Texts(Tokenizer()).shown(ids, torch.zeros(len(ids)))
    assert 1 < len(words) < len(ids)
    for method in METHODS:
        (event,) = events.Tensors(f"attribution_sample_0/label/{method}/text_summary")
        rows = event.tensor_proto.string_val[0].decode().splitlines()[-len(words) :]
        assert [row.split(" | ")[1] for row in rows] == words


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

    # The mask has been passed: padding gets no relevance, and the delta is that of the final model.
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
    # Batch sizes differ, and with them the last bits.
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= 2


class Scaled(nn.Module):
    """A Transformer for images, by name."""

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


def test_captums_methods_take_what_has_a_place(pl, trainer_options):
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


def test_captums_methods_say_how_to_be_used_where_all_is_by_name(pl, trainer_options):
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
