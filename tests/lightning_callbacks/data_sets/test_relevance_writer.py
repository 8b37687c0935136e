"""Explains data sets with the real trainer, and reads the explanations back."""

import functools
import json

import pyarrow.parquet as pq
import pytest
import timm
import torch
from captum.attr import Saliency
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer import AttnLRP, ConservativeLRP, GenericAttentionRelevance
from lightning_callbacks import ExplainedSample, RelevanceDataset, RelevanceWriter
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.explained import CLASSES, explainer, predict
from tests.lightning_callbacks.models import classifier


@pytest.mark.both
@pytest.mark.parametrize("inference_mode", [True, False])
def test_each_image_is_written_once_and_read_back(
    pl, trainer_options, tmp_path, vit, images, inference_mode
):
    writer = RelevanceWriter(tmp_path / "out", every_n_batches=2)
    module = explainer(pl, vit, ConservativeLRP, target="label")
    loader = DataLoader(images, batch_size=2)
    predict(pl, trainer_options, module, loader, writer, inference_mode=inference_mode)

    read = RelevanceDataset(tmp_path / "out")
    assert read.sample_ids.tolist() == list(range(11))
    pixels, labels = images.tensors
    expected = ConservativeLRP(vit).attribute(pixels, target=labels)
    logits = vit(pixels).detach()
    for number, item in enumerate(read):
        assert isinstance(item, ExplainedSample)
        assert (item.sample_id, item.target) == (number, labels[number])
        assert item.prediction == logits[number].argmax()
        assert item.score == pytest.approx(logits[number, labels[number]].item(), rel=1e-6)
        torch.testing.assert_close(
            item.attributions["input_0"], expected[number].float(), rtol=1e-5, atol=1e-9
        )
    assert len(list((tmp_path / "out/shards").iterdir())) == 3
    batch = next(iter(DataLoader(read, batch_size=4, num_workers=0)))
    assert batch.attributions["input_0"].shape == (4, 3, 32, 32)


def test_texts_of_several_lengths(pl, trainer_options, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    texts = [torch.randint(1, 50, (length,)) for length in (4, 7, 5, 6, 3)]

    def collate(items):
        ids = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    module = explainer(pl, model, GenericAttentionRelevance)
    loader = DataLoader(texts, batch_size=2, collate_fn=collate)
    writer = RelevanceWriter(tmp_path / "out", every_n_batches=3)
    predict(pl, trainer_options, module, loader, writer)

    read = RelevanceDataset(tmp_path / "out")
    method = GenericAttentionRelevance(model)
    for text, item in zip(texts, read, strict=True):
        target = model(text[None]).logits.argmax().item()
        assert (item.target, item.prediction) == (target, target)
        relevance = item.attributions["input_ids"]
        expected = method.attribute(text[None], target=target)[0]
        torch.testing.assert_close(relevance[: len(text)], expected, rtol=1e-4, atol=1e-6)
        assert (relevance[len(text) :] == 0).all()
    # Two batches are padded to other lengths than the one before.
    assert len(list((tmp_path / "out/shards").iterdir())) == 3


def test_the_index_is_a_parquet_table(pl, trainer_options, tmp_path, vit, images):
    writer = RelevanceWriter(tmp_path, every_n_batches=2)
    module = explainer(pl, vit, AttnLRP, target=3, tokens=True)
    predict(pl, trainer_options, module, DataLoader(images, batch_size=3), writer)
    table = pq.read_table(tmp_path / "index.parquet").to_pydict()
    assert list(table) == [
        *("sample_id", "target", "prediction", "score", "non_finite", "checksum"),
        *("shard", "bytes", "offset"),
    ]
    assert table["sample_id"] == list(range(11))
    assert set(table["target"]) == {3}
    assert table["offset"] == [*range(6), *range(5)]
    assert all((tmp_path / "shards" / name).is_file() for name in table["shard"])
    tokens = RelevanceDataset(tmp_path)[4].attributions["input_0"]
    expected = AttnLRP(vit).attribute_tokens(images.tensors[0][4:5], target=3)[0]
    torch.testing.assert_close(tokens, expected.float(), rtol=1e-5, atol=1e-9)


def test_a_run_goes_on_where_another_has_stopped(pl, trainer_options, tmp_path, vit, images):
    module = explainer(pl, vit, AttnLRP)
    writer = RelevanceWriter(tmp_path)
    loader = DataLoader(images, batch_size=2)
    predict(pl, trainer_options, module, loader, writer, limit_predict_batches=3)
    with pytest.raises(ValueError, match="5 of 11 samples are missing"):
        RelevanceDataset(tmp_path)
    assert RelevanceDataset(tmp_path, partial=True).sample_ids.tolist() == list(range(6))
    (tmp_path / "shards" / ".0.safetensors.0.unfinished").write_bytes(b"killed")
    before = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}

    writer = RelevanceWriter(tmp_path)
    sampler = writer.remaining(images)
    assert list(sampler) == list(range(6, 11))
    loader = DataLoader(images, batch_size=2, sampler=sampler)
    predict(pl, trainer_options, module, loader, writer)
    read = RelevanceDataset(tmp_path)
    assert read.sample_ids.tolist() == list(range(11))
    assert [path.name for path in (tmp_path / "shards").iterdir() if path.name[0] == "."] == []
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert before < names

    # Nothing is left to do, whichever loader is used.
    for again in (loader, DataLoader(images, batch_size=4)):
        predict(pl, trainer_options, module, again, RelevanceWriter(tmp_path))
        assert {path.name for path in (tmp_path / "shards").iterdir()} == names


@pytest.mark.both
def test_another_run_is_refused_with_what_differs(pl, trainer_options, tmp_path, vit, images):
    loader = DataLoader(images, batch_size=4)
    module = explainer(pl, vit, functools.partial(ConservativeLRP, gamma=0.1), tokens=True)
    writer = RelevanceWriter(tmp_path, notes={"data": "a"})
    predict(pl, trainer_options, module, loader, writer)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["samples"] == 11
    assert manifest["method"]["arguments"]["gamma"] == 0.1
    assert manifest["versions"]["timm"] == timm.__version__

    other = explainer(pl, vit, ConservativeLRP, target="label")
    with pytest.raises(MisconfigurationException) as refusal:
        predict(pl, trainer_options, other, loader, RelevanceWriter(tmp_path))
    differing = str(refusal.value).splitlines()[1:-1]
    assert differing == [
        "  method.arguments.gamma: 0.1 there, 0.0 here",
        "  target: predicted there, label here",
        "  tokens: True there, False here",
        "  notes.data: a there, nothing here",
    ]
    changed = timm.create_model("test_vit", num_classes=CLASSES, img_size=32).double().eval()
    changed.load_state_dict(vit.state_dict())
    changed.head.bias.data[0] += 1e-6
    module = explainer(pl, changed, functools.partial(ConservativeLRP, gamma=0.1), tokens=True)
    writer = RelevanceWriter(tmp_path, notes={"data": "a"})
    with pytest.raises(MisconfigurationException, match=r"differs:\n  model.hash: sha256.*\nTake"):
        predict(pl, trainer_options, module, loader, writer)
    assert len(RelevanceDataset(tmp_path)) == 11


@pytest.mark.both
def test_what_is_explained_is_saved_when_a_batch_fails(pl, trainer_options, tmp_path, vit, images):
    class Fails(AttnLRP):
        def attribute(self, inputs, *args, **kwargs):
            if len(inputs) < 3:
                raise RuntimeError("out of memory")
            return super().attribute(inputs, *args, **kwargs)

    writer = RelevanceWriter(tmp_path, every_n_batches=100)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(pl, trainer_options, explainer(pl, vit, Fails), DataLoader(images, 3), writer)
    assert RelevanceDataset(tmp_path, partial=True).sample_ids.tolist() == list(range(9))


@pytest.mark.both
def test_captums_methods_and_shuffled_loaders(pl, trainer_options, tmp_path, vit, images):
    module = explainer(pl, vit, Saliency, target="label")
    loader = DataLoader(images, batch_size=3, shuffle=True)
    writer = RelevanceWriter(tmp_path)
    predict(pl, trainer_options, module, loader, writer)
    pixels, labels = images.tensors
    expected = Saliency(vit).attribute(pixels.clone(), target=labels).float()
    for item, map_ in zip(RelevanceDataset(tmp_path), expected, strict=True):
        torch.testing.assert_close(item.attributions["input_0"], map_, rtol=1e-5, atol=1e-9)


@pytest.mark.both
def test_what_cannot_be_written_is_refused(pl, trainer_options, tmp_path, vit, images):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(images)

    module = explainer(pl, vit, AttnLRP)
    loader = DataLoader(images, batch_size=4)
    cases = [
        (module, [loader, loader], "one data set, got 2 loaders"),
        (module, DataLoader(Stream(), batch_size=2), "length and indices.* got Stream"),
        (classifier(pl), loader, "what an ExplainerModule explains, got Classifier"),
    ]
    for refused, loaders, reason in cases:
        with pytest.raises(MisconfigurationException, match=reason):
            predict(pl, trainer_options, refused, loaders, RelevanceWriter(tmp_path))

    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        """Has the name that counts; the true one needs GPUs."""

    split = {"devices": "auto", "accelerator": "auto", "strategy": FSDPStrategy("cpu")}
    with pytest.raises(MisconfigurationException, match="FSDPStrategy, which shards"):
        predict(pl, trainer_options, module, loader, RelevanceWriter(tmp_path), **split)
    two = [RelevanceWriter(tmp_path), RelevanceWriter(tmp_path / "b")]
    trainer = pl.Trainer(**trainer_options, logger=False, callbacks=two)
    with pytest.raises(MisconfigurationException, match="has 2 RelevanceWriters"):
        trainer.predict(module, loader, return_predictions=False)
    with pytest.raises(MisconfigurationException, match="tokens=True needs a method of captum_t"):
        explainer(pl, vit, Saliency, tokens=True)
    unlabelled = TensorDataset(images.tensors[0], torch.tensor([0] * 10 + [-100]))
    labelled = explainer(pl, vit, AttnLRP, target="label")
    with pytest.raises(ValueError, match="row 2 of the batch has no label"):
        predict(pl, trainer_options, labelled, DataLoader(unlabelled, 4), RelevanceWriter(tmp_path))
    with pytest.raises(FileNotFoundError, match="no manifest"):
        RelevanceDataset(tmp_path / "nothing")


@pytest.mark.both
def test_predictions_that_fill_the_memory_are_warned_of(pl, trainer_options, tmp_path, vit, images):
    trainer = pl.Trainer(**trainer_options, logger=False, callbacks=[RelevanceWriter(tmp_path)])
    with pytest.warns(UserWarning, match="return_predictions=False"):
        trainer.predict(explainer(pl, vit, AttnLRP, tokens=True), DataLoader(images, 11))
    assert len(RelevanceDataset(tmp_path)) == 11
