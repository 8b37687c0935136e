"""Weights are loaded from files of many kinds; no code in them runs, and none are made up."""

from argparse import Namespace
from datetime import datetime, timezone
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("name", ["vit.pth", "last.ckpt", "timm/model.safetensors"])
def test_files_of_weights(checkpoints, photo, run, name):
    explain = "explain", photo, "-c", "2", "-m", "AttnLRP", "--image-size", "32"
    run(explain[0], checkpoints / "timm", *explain[1:], "-o", "folder.safetensors")
    status, _, err = run(
        explain[0], checkpoints / name, "--architecture", "test_vit", *explain[1:],
        "-o", "file.safetensors",
    )  # fmt: skip
    assert status == 0, err
    expected, found = load_file("folder.safetensors"), load_file("file.safetensors")
    torch.testing.assert_close(found["0/AttnLRP/2"], expected["0/AttnLRP/2"])


def test_weights_as_training_scripts_save_them(checkpoints, photo, run):
    weights = torch.load(checkpoints / "vit.pth")
    nested = {f"module.{key}": value for key, value in weights.items()}
    training = {
        "net": nested, "args": Namespace(lr=0.1, out=Path("out")), "epoch": 3, "arch": "test_vit",
        "best": np.float64(0.5), "losses": np.zeros(3), "when": datetime.now(timezone.utc),
    }  # fmt: skip
    torch.save(training, "model_best.pth.tar")
    explain = "--architecture", "test_vit", "--image-size", "32", photo, "-c", "1"
    status, out, err = run("explain", "model_best.pth.tar", *explain, "-m", "AttnLRP")
    assert status == 0, err
    assert out == run("explain", checkpoints / "vit.pth", *explain, "-m", "AttnLRP")[1].replace(
        "photo-2", "photo"
    )


def test_the_number_of_classes_is_found_in_all_heads(photo, run):
    torch.manual_seed(0)
    arguments = {"img_size": 32, "num_classes": 5, "depth": 2}
    two_heads = timm.create_model("deit_tiny_distilled_patch16_224", **arguments)
    torch.save(two_heads.state_dict(), "two.pth")
    status, _, err = run(
        "explain", "two.pth", photo, "--architecture", "deit_tiny_distilled_patch16_224",
        "--image-size", "32", "-m", "AttnLRP", "-c", "4", "--model-kwargs", "depth=2",
    )  # fmt: skip
    assert status == 0, err


def test_errors_of_weights_say_what_is_wrong(checkpoints, photo, run):
    explain = "--architecture", "test_vit", "--image-size", "32", photo
    vit = timm.create_model("test_vit", img_size=32, num_classes=3)
    torch.save(vit, "whole.pth")
    status, _, err = run("explain", "whole.pth", *explain)
    assert status == 2
    assert "has objects other than weights (timm." in err
    assert "weights_only=False" in err
    body = {f"body.{key}": value for key, value in vit.state_dict().items() if "head" not in key}
    torch.save(body | {"head.weight": vit.head.weight, "head.bias": vit.head.bias}, "apart.pth")
    status, _, err = run("explain", "apart.pth", *explain)
    assert "78 of 80 fit" in err
    assert "another prefix there (head.weight, head.bias)" in err
    status, _, err = run(
        "explain", checkpoints / "vit.pth", photo, "--architecture", "vit_tiny_patch16_224"
    )
    assert "1 of 152 fit" in err
    assert "Check --architecture" in err
    Path("empty").mkdir()
    status, _, err = run("explain", "empty", photo)
    assert "no config.json, so its model is unknown" in err
    _, _, err = run("explain", "vit_base_patch16_244", photo)
    assert "Did you mean vit_base_patch16_224" in err


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_no_code_of_a_checkpoint_runs(photo, run):
    torch.save({"state_dict": Payload()}, "bad.ckpt")
    status, _, err = run("explain", "bad.ckpt", "--architecture", "test_vit", photo)
    assert status == 2
    assert "code in checkpoints is not run" in err
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("names", "nested"),
    [(("student", "teacher"), False), (("state_dict", "state_dict_ema"), True)],
)
def test_of_several_models_in_a_file_one_must_be_chosen(checkpoints, photo, run, names, nested):
    vit = torch.load(checkpoints / "vit.pth")
    other = {key: -weight for key, weight in vit.items()}
    both = dict(zip(names, (other, vit), strict=True))
    flat = {f"{name}.{key}": w for name, part in both.items() for key, w in part.items()}
    torch.save({**both, "epoch": 3} if nested else {"state_dict": flat}, "both.ckpt")
    first, second = names if nested else (f"state_dict.{name}" for name in names)
    explain = "explain", "both.ckpt", "--architecture", "test_vit", "--image-size", "32", photo
    status, _, err = run(*explain)
    assert status == 2
    assert f"by --weights, {first}, {second}." in err
    status, _, err = run(*explain, "--weights", "third")
    assert status == 2
    assert f"models that fit: {first}, {second}." in err
    status, out, _ = run(*explain, "-c", "1", "--weights", names[1])
    alone = run("explain", checkpoints / "vit.pth", *explain[2:], "-c", "1")[1]
    scores = [next(line for line in o.splitlines() if "score" in line) for o in (out, alone)]
    assert status == 0
    assert scores[0] == scores[1]


def test_missing_weights_are_refused(checkpoints, photo, run):
    copytree(checkpoints / "hf-vit", "half")
    weights = load_file("half/model.safetensors")
    headless = {key: value for key, value in weights.items() if "classifier" not in key}
    save_file(headless, "half/model.safetensors", metadata={"format": "pt"})
    status, _, err = run("explain", "half", photo)
    assert status == 2
    assert "lacks weights of a ViTForImageClassification: classifier.bias" in err
