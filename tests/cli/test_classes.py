"""Classes are chosen by their number or name."""

from pathlib import Path
from shutil import copytree

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from captum_transformer.errors import InvalidTargetError
from captum_transformer.explainers.classes import find_class


def test_names_from_a_file(checkpoints, photo, run):
    Path("names.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    _, out, _ = run(
        "explain", checkpoints / "vit.pth", "--architecture", "test_vit", "--image-size", "32",
        photo, "--labels", "names.txt", "-c", "TWO",
    )  # fmt: skip
    assert "two (1)" in out
    Path("names.txt").write_text("one\ntwo\n", encoding="utf-8")
    status, _, err = run(
        "explain", checkpoints / "timm", photo, "--labels", "names.txt", "-c", "two"
    )
    assert status == 2
    assert "has 2 lines, and the model 3 classes" in err


def save_reader(kind, checkpoints, folder):
    """Saves a model with another head, and the tokenizer of the classifier."""
    copytree(checkpoints / "bert", folder)
    config = BertConfig.from_pretrained(checkpoints / "bert", initializer_range=0.5)
    config.architectures = [kind.__name__]
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)


def test_an_answer_and_the_class_of_a_word(checkpoints, run):
    save_reader(BertForQuestionAnswering, checkpoints, "answers")
    explain = "explain", "answers", "--text", "a film", "--pair", "an unbelievable film"
    status, out, err = run(*explain, "-c", "unbelievable", "-m", "AttnLRP")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("text 1: unbelievable, score ")
    assert ", p = 0." in lines[0]
    words = [line.split("\t")[0].strip() for line in lines[2:]]
    assert words == "[CLS] a film [SEP] an unbelievable film [SEP]".split()
    assert run(*explain)[0] == 0
    status, _, err = run("explain", "answers", "--text", "a film")
    assert status == 2
    assert "give the question as --text and the text as --pair" in err
    status, _, err = run(*explain, "-c", "Rome")
    assert status == 1
    assert "exactly once" in err

    save_reader(BertForTokenClassification, checkpoints, "words")
    explain = "explain", "words", "--text", "an unbelievable film"
    status, out, _ = run(*explain, "-c", "film", "-o", "out.safetensors")
    assert status == 0
    assert out.startswith("text 1: film: ")
    status, _, err = run(*explain)
    assert status == 2
    assert "choose a word, for example with --class Paris" in err


NAMES = {0: "tabby, tabby cat", 1: "tiger cat", 2: "Zebra", 3: "zebra crossing"}


def test_classes_are_found_by_id_name_and_part():
    asked = {"2": 2, "zebra": 2, "TABBY CAT": 0, "tabby": 0, "tiger": 1, " crossing ": 3}
    assert {name: find_class(name, NAMES, 4) for name in asked} == asked


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("4", "from 0 to 3"),
        ("cat", r"may be several classes: tabby, tabby cat \(0\); tiger cat \(1\)"),
        ("zebbra", r"Did you mean zebra \(2\)"),
        ("", "no class named"),
        ("-1", "no class named"),
    ],
)
def test_classes_that_do_not_exist_are_refused(asked, message):
    with pytest.raises(InvalidTargetError, match=message):
        find_class(asked, NAMES, 4)


def test_a_name_that_is_the_number_of_another_class():
    assert find_class("3", {0: "3", 3: "0"}, 2) == 0
    with pytest.raises(InvalidTargetError, match=r"several classes: 3 \(7\); 8 \(3\)"):
        find_class("3", {7: "3", 3: "8"}, 9)


def test_names_are_needed_to_find_a_class_by_name(checkpoints, photo, run):
    of = "--architecture", "test_vit", "--image-size", "32"
    status, _, err = run("explain", checkpoints / "vit.pth", *of, photo, "-c", "zebra")
    assert status == 2
    assert "--labels" in err


def test_a_wrong_class_is_reported_first(checkpoints, photo, run):
    for asked, message in (("zebbra", "Did you mean zebra (2)?"), ("3", "the model has 3")):
        status, out, err = run("explain", checkpoints / "timm", photo, photo, "-c", asked)
        assert (status, out) == (2, "")
        assert message in err
