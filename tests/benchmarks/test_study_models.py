"""The study explains any model of timm or Transformers on the data that fits it."""

import pytest
import timm
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

from tests.benchmarks.study_data import OF_TEXTS, noise, run

pytestmark = pytest.mark.usefixtures("quick_study")


def test_a_model_of_timm_is_studied_on_a_folder_of_pictures(tmp_path):
    sizes = {"img_size": 32, "depth": 2}
    model = timm.create_model("test_vit", num_classes=3, **sizes)
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    timm.models.save_for_hf(model, tmp_path / "model", model_args=sizes)
    for label in range(3):
        for number in range(2):
            noise(tmp_path / "imagenet" / f"n{label}" / f"{number}.png", (40, 50))
    name = f"local-dir:{tmp_path / 'model'}"
    (record,) = run(tmp_path, tmp_path / "out", "--model", name).values()
    assert record["metrics"]["perturbation"]["scores"].keys() == {
        f"{target}, {order}"
        for target in ("predicted", "target")
        for order in ("positive", "negative")
    }
    noise(tmp_path / "imagenet" / "one too many" / "0.png", (40, 50))
    with pytest.raises(ValueError, match=r"3 classes apart, but .* has 4"):
        run(tmp_path, tmp_path / "out", "--model", name)


def test_a_model_of_transformers_is_studied_on_sentences(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "a", "movie", "##s"]
    folder = tmp_path / "model"
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (tmp_path / "SST-2").mkdir()
    lines = ["sentence\tlabel", "a good movie\t1", "bad movies\t0", "good good good\t1"]
    (tmp_path / "SST-2" / "dev.tsv").write_text("\n".join(lines), encoding="utf-8")
    (record,) = run(tmp_path, tmp_path / "out", "--model", str(folder)).values()
    assert record["facts"]["samples"].startswith("3,")
    auac = record["metrics"]["activation"]["scores"]["AUAC"]
    assert auac["methods"].keys() == OF_TEXTS
    assert len(auac["published"]["rows"]) == 8


def test_models_for_other_tasks_are_refused(tmp_path):
    config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    AlbertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AlbertForMaskedLM: the study takes image and text"):
        run(tmp_path, tmp_path / "out", "--model", str(tmp_path))


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"neither a folder 'sst_trees' nor 'sst_trees.zip'"
    ):
        run(tmp_path, tmp_path / "out", "--only", "sentiment")
