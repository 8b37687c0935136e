"""The command draws the explanation of a method, with the method's own numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matplotlib.image import imread
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from timm.models._hub import save_for_hf
from transformers import AutoTokenizer, BertForSequenceClassification

from captum_transformer import AttnLRP, ConservativeLRP, GenericAttentionRelevance
from captum_transformer.visualization import merge_words


@pytest.mark.slow
def test_a_process_draws_a_picture(checkpoints, photo):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "captum_transformer.cli", "explain", checkpoints / "timm", photo],
        cwd=photo.parent, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    check_picture(photo, done.returncode, done.stdout, done.stderr)


def test_a_picture_is_drawn(checkpoints, photo, run):
    check_picture(photo, *run("explain", checkpoints / "timm", photo))


def check_picture(photo, status, out, err):
    assert status == 0, err
    assert "method" in err
    first, second = out.splitlines()
    assert first.startswith(f"{photo}: ")
    assert second == "  photo.explanation.png"
    assert "summed by patch" in err
    assert imread(photo.parent / "photo.explanation.png").shape == (333, 618, 4)


def test_pixels_are_not_summed(checkpoints, photo, run):
    status, _, err = run("explain", checkpoints / "timm", photo, "-o", "of.png", "--pixels")
    assert status == 0
    assert "patch," not in err
    assert imread("of.png").shape == (314, 618, 4), "no line below the picture"


def test_the_numbers_are_those_of_the_methods(checkpoints, photo, run):
    status, _, _ = run(
        "explain", checkpoints / "timm", photo, "-c", "zebra", "-c", "0", "-o", "all.safetensors",
        "-m", "ConservativeLRP", "-m", "genericattentionrelevance",
    )  # fmt: skip
    assert status == 0
    model = timm.create_model("test_vit", img_size=32, num_classes=3).eval()
    model.load_state_dict(load_file(checkpoints / "timm/model.safetensors"))
    data = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    with Image.open(photo) as image:
        inputs = create_transform(**data)(image.convert("RGB"))[None]

    found = load_file("all.safetensors")
    assert len(found) == 4
    for method in (ConservativeLRP, GenericAttentionRelevance):
        for target in (0, 2):
            expected = method(model).attribute(inputs, target)[0]
            torch.testing.assert_close(found[f"0/{method.__name__}/{target}"], expected)
    with safe_open("all.safetensors", "pt") as file:
        (about,) = json.loads(file.metadata()["inputs"])
    assert about["input"] == str(photo)
    assert about["classes"]["2"] == [
        "zebra",
        pytest.approx(float(model(inputs)[0, 2].detach()), abs=1e-4),
    ]


def test_text_numbers_are_those_of_the_method(checkpoints, run):
    text = "Unbelievable film"
    status, out, _ = run("explain", checkpoints / "bert", "--text", text, "-c", "good")
    assert status == 0
    tokenizer = AutoTokenizer.from_pretrained(checkpoints / "bert")
    model = BertForSequenceClassification.from_pretrained(checkpoints / "bert").eval()
    coded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    values = AttnLRP(model).attribute(coded.input_ids, 1)[0]
    words, sums = merge_words(coded.tokens(), values, coded.offset_mapping[0], text)
    lines = [line.split("\t") for line in out.splitlines()[2:]]
    assert [word for word, _ in lines] == words == ["[CLS]", "Unbelievable", "film", "[SEP]"]
    np.testing.assert_allclose([float(value) for _, value in lines], sums, rtol=1e-4)


def test_tokens_instead_of_words(checkpoints, run):
    _, out, _ = run("explain", checkpoints / "bert", "--text", "unbelievable", "--tokens")
    assert any(line.startswith("##") for line in out.splitlines())


@pytest.mark.slow
def test_captured_explanations_have_the_same_numbers(checkpoints, photo, run):
    upside_down = photo.parent / "upside_down.png"
    with Image.open(photo) as image:
        image.rotate(180).save(upside_down)
    asked = "-c", "zebra", "-c", "0", "-m", "AttnLRP", "-m", "ConservativeLRP"
    files = photo, upside_down, photo, upside_down  # as it is, captured, and by the graph
    for options, path in ((), "plain"), (["--captured"], "graph"):
        status, _, err = run(
            "explain", checkpoints / "timm", *files, *asked, *options, "-o", f"{path}.safetensors"
        )
        assert status == 0
        assert "uncaptured" not in err
    plain, by_graph = load_file("plain.safetensors"), load_file("graph.safetensors")
    assert len(plain) == 4 * 2 * 2
    torch.testing.assert_close(by_graph, plain, rtol=0, atol=0)
    assert not torch.equal(plain["2/AttnLRP/0"], plain["3/AttnLRP/0"])


def test_the_default_method_is_printed_with_its_reason(checkpoints, photo, run):
    _, _, err = run("explain", checkpoints / "bert", "--text", "a film", "--text", "a film")
    assert err.count("AttnLRP, since ") == 1
    assert run("explain", checkpoints / "bert", "--text", "a film", "-m", "AttnLRP")[2] == ""
    _, _, err = run("explain", checkpoints / "hf-vit", photo)
    assert "read from one token" in err
    config = {"img_size": 32, "depth": 2, "num_classes": 3}
    config |= {"global_pool": "avg", "class_token": False}
    pooled = timm.create_model("vit_tiny_patch16_224", **config)
    save_for_hf(pooled, "pooled", model_config={"num_classes": 3}, model_args=config)
    _, _, err = run("explain", "pooled", photo)
    assert "pooled" in err
