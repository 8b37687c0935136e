"""Whatever the input is, the user is told what is wrong, and nothing runs or explodes."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_transformer.cli import read
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.read import read_image, read_text
from captum_transformer.errors import InvalidTargetError
from captum_transformer.explainers.classes import find_class


def png(width, height, pixels=b""):
    """A PNG that claims any size."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg():
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()


BAD_IMAGES = {
    "empty": (b"", "can't be read as an image"),
    "text": (b"hello", "can't be read as an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "can't be read as an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "can't be read"),
    "half a JPEG": (jpeg()[:1000], "can't be read as an image"),
    "broken PNG": (png(9, 9, b"xx")[:-30], "can't be read as an image"),
    "a bomb": (png(20_000, 20_000), "too many pixels|limit"),
    "a smaller bomb": (png(8_000, 8_000), "8000 x 8000 pixels"),
    "a strip": (png(1, 40_000), "20 times as long"),
    "no pixels": (png(0, 5), "can't be read|has 0 x 5"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_refused(kind, tmp_path):
    data, message = BAD_IMAGES[kind]
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_image(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="it is not a file"):
            read_image(path)
    for path in (tmp_path / "missing", tmp_path / ("x" * 5000), Path("a\0b")):
        with pytest.raises(UserError, match="no such file"):
            read_image(path)


def test_large_files_are_not_even_opened(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(read.MAX_IMAGE_BYTES + 1)
    with pytest.raises(UserError, match="the limit is 50,000,000"):
        read_image(path)
    with pytest.raises(UserError, match="the limit is 1,000,000"):
        read_text(path)


def test_texts_must_be_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_text(path)
    path.write_bytes("\ufeffnaïve".encode())
    assert read_text(path) == "naïve"


def test_images_of_all_kinds_become_rgb(tmp_path):
    path = tmp_path / "image.png"
    ramp = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(ramp.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 0], ramp)
    Image.fromarray(np.dstack([ramp, ramp, ramp, np.zeros_like(ramp)])).save(path)
    assert (np.asarray(read_image(path)) == 255).all()
    Image.fromarray(ramp).convert("P").save(path)
    assert read_image(path).mode == "RGB"
    upright = Image.Exif()
    upright[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "photo.jpg", exif=upright)
    assert read_image(tmp_path / "photo.jpg").size == (4, 8)


def test_one_bad_file_does_not_lose_the_others(checkpoints, photo, run):
    bad = photo.with_name("bad\x1b[2J.png")
    bad.write_text("no image", encoding="utf-8")
    status, out, err = run("explain", checkpoints / "timm", photo, bad, "missing.png", "a.txt")
    assert status == 1
    assert out.splitlines()[1] == "  photo.explanation.png"
    assert "missing.png: there is no such file" in err
    assert "a.txt: it is a text, and the model reads images" in err
    assert "3 of 4 inputs" in err
    assert "\x1b" not in err


def test_names_that_no_file_or_model_can_have(checkpoints, photo, run):
    for name in ("x" * 5000, "a\0b", "~nobody", "\udcff.png"):
        status, _, err = run("explain", checkpoints / "timm", name)
        assert status == 1
        assert "there is no such file" in err
        assert run("explain", name, photo)[0] == 2


def test_a_file_whose_name_is_no_text(checkpoints, photo, run):
    odd = photo.rename(photo.with_name("odd\udcff.png"))
    status, _, err = run("explain", checkpoints / "timm", odd, "-m", "AttnLRP", "-o", "page.html")
    assert (status, err.count("\n")) == (0, 2)  # how pictures are prepared, and maps summed
    assert "odd\ufffd.png" in Path("page.html").read_text(encoding="utf-8")
    assert run("explain", checkpoints / "timm", odd)[0] == 0


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
def test_classes_that_do_not_exist(asked, message):
    with pytest.raises(InvalidTargetError, match=message):
        find_class(asked, NAMES, 4)


def test_a_name_that_is_another_class_s_number():
    assert find_class("3", {0: "3", 3: "0"}, 2) == 0
    with pytest.raises(InvalidTargetError, match=r"several classes: 3 \(7\); 8 \(3\)"):
        find_class("3", {7: "3", 3: "8"}, 9)


def test_names_are_needed_to_find_a_class_by_name(checkpoints, photo, run):
    of = "--architecture", "test_vit", "--image-size", "32"
    status, _, err = run("explain", checkpoints / "vit.pth", *of, photo, "-c", "zebra")
    assert status == 2
    assert "--labels" in err


def test_a_wrong_class_is_told_before_all_else(checkpoints, photo, run):
    for asked, message in (("zebbra", "Did you mean zebra (2)?"), ("3", "the model has 3")):
        status, out, err = run("explain", checkpoints / "timm", photo, photo, "-c", asked)
        assert (status, out) == (2, "")
        assert message in err


def test_texts_that_do_not_fit(checkpoints, photo, run):
    bert = checkpoints / "bert"
    for text, message in ((" \n", "the text is empty"), ("film " * 70, "the model takes 64")):
        status, _, err = run("explain", bert, "--text", text)
        assert status == 1
        assert message in err
    assert "it is an image, and the model reads texts" in run("explain", bert, photo)[2]


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_no_code_of_a_checkpoint_runs(photo, run):
    torch.save({"state_dict": Payload()}, "bad.ckpt")
    status, _, err = run("explain", "bad.ckpt", "--architecture", "test_vit", photo)
    assert status == 2
    assert "code in checkpoints is not run" in err
    assert not Path("executed").exists()


def test_no_code_or_other_file_beside_a_checkpoint_is_used(photo, run):
    for name, config, message in (
        ("remote", {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "neither"),
        ("unknown", {"model_type": "bert", "architectures": ["os"]}, "doesn't have"),
        (
            "timm",
            {"architecture": "test_vit", "model_args": {"checkpoint_path": "bad.ckpt"}},
            "arguments that models don't have",
        ),
        ("hub", {"architecture": "hf-hub:someone/else"}, "no architecture"),
    ):
        folder = Path(name)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "evil.py").write_text(
            "from pathlib import Path; Path('executed').touch()", encoding="utf-8"
        )
        status, _, err = run("explain", folder, photo)
        assert status == 2
        assert message in err
    assert not Path("executed").exists()


def test_models_that_do_not_load(checkpoints, photo, run):
    Path("empty").mkdir()
    Path("notes.txt").write_text("no model", encoding="utf-8")
    Path("broken.safetensors").write_bytes(b"\xff" * 20)
    of = "--architecture", "test_vit"
    for arguments, message in (
        (["empty"], "has no config.json, so its model is unknown"),
        (["./missing"], "There is no file or folder ./missing"),
        (["missing.pth", *of], "There is no file or folder missing.pth"),
        (["notes.txt", *of], "is not a checkpoint"),
        (["broken.safetensors", *of], "can't be read as weights"),
        ([checkpoints / "vit.pth"], "--architecture"),
        ([checkpoints / "vit.pth", "--architecture", "no_such_vit"], "no architecture"),
        ([checkpoints / "vit.pth", "--architecture", "test_vit2"], "of another model"),
        ([checkpoints / "timm", "--device", "toaster"], "There is no device"),
        (["someone/no-such-model"], "neither a model of timm nor one of Hugging Face"),
    ):
        status, _, err = run("explain", *arguments, photo)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("names", "nested"),
    [(("student", "teacher"), False), (("state_dict", "state_dict_ema"), True)],
)
def test_of_several_models_in_a_file_one_must_be_chosen(checkpoints, photo, run, names, nested):
    import torch

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


def test_weights_that_are_not_there_are_not_made_up(checkpoints, photo, run):
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    copytree(checkpoints / "hf-vit", "half")
    weights = load_file("half/model.safetensors")
    headless = {key: value for key, value in weights.items() if "classifier" not in key}
    save_file(headless, "half/model.safetensors", metadata={"format": "pt"})
    status, _, err = run("explain", "half", photo)
    assert status == 2
    assert "lacks weights of a ViTForImageClassification: classifier.bias" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["explain"], ["explode"], ["explain", "m", "-m", "Magic"],
        ["explain", "m", "--top", "0"], ["explain", "m", "--scale", "nan"],
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, run):
    status, _, err = run(*arguments)
    assert status == 2
    assert "usage: captum-transformer" in err


def test_nothing_to_explain(checkpoints, run):
    Path("nothing").mkdir()
    assert "There is nothing to explain" in run("explain", checkpoints / "timm")[2]
    assert "no images or texts in nothing" in run("explain", checkpoints / "timm", "nothing")[2]


def test_outputs_that_cannot_be(checkpoints, photo, run):
    for output, message in ((["-o", "a.gif"], "must be a folder or end in"),
                            (["-o", "a.png", "-f", "html"], "something else"),
                            (["-o", photo / "folder"], "can't be made")):  # fmt: skip
        status, _, err = run("explain", checkpoints / "timm", photo, *output)
        assert status == 2
        assert message in err


def test_models_that_read_other_things(run):
    from transformers import WhisperConfig

    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    WhisperConfig(**sizes, **heads, architectures=["WhisperForConditionalGeneration"],
                  pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
                  ).save_pretrained("ears")  # fmt: skip
    for command in (["explain", "ears", "--random-weights", "--text", "a"], ["inspect", "ears"]):
        status, _, err = run(*command)
        assert status == 2
        assert "reads input_features" in err
