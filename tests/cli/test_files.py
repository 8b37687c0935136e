"""Images and texts are read from files and folders, and bad ones are refused."""

import io
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from captum_transformer.cli import read
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.read import read_image, read_text


def test_a_folder_of_inputs_with_equal_names(checkpoints, photo, run):
    folder = photo.parent / "in"
    (folder / "deeper").mkdir(parents=True)
    for name in ("photo.png", "photo.jpg", "deeper/photo.png"):
        with Image.open(photo) as image:
            image.save(folder / name)
    (folder / "notes.md").write_text("no input", encoding="utf-8")
    status, _, err = run(
        "explain", checkpoints / "timm", folder, folder / "deeper/photo.png", "-o", "out"
    )
    assert status == 0
    assert "skipped files that are neither images nor texts: 1" in err
    assert {path.name for path in Path("out").iterdir()} == {
        "photo.explanation.png", "photo-2.explanation.png", "photo-3.explanation.png",
        "photo-4.explanation.png",
    }  # fmt: skip


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="files have ASCII names")
def test_names_that_some_systems_take_for_one_are_told_apart(checkpoints, photo, run):
    copies = []
    for number, name in enumerate(["A.png", "a.png", "\u00e4.png", "a\u0308.png"]):
        copies.append(photo.parent / str(number) / name)
        copies[-1].parent.mkdir()
        shutil.copy(photo, copies[-1])
    assert run("explain", checkpoints / "timm", *copies, "-o", "out")[0] == 0
    names = {normalize("NFC", path.name).casefold() for path in Path("out").iterdir()}
    assert names == {f"{stem}.explanation.png" for stem in ("a", "a-2", "\u00e4", "\u00e4-2")}


def test_files_in_a_folder_that_the_model_does_not_read_are_skipped(checkpoints, photo, run):
    folder = photo.parent / "in"
    folder.mkdir()
    photo.rename(folder / "photo.png")
    (folder / "labels.txt").write_text("a film", encoding="utf-8")
    for model, written in (("timm", "photo"), ("bert", "labels")):
        status, _, err = run("explain", checkpoints / model, folder, "-o", model)
        assert status == 0
        assert "skipped files in folders, as the model reads" in err
        assert [path.name for path in Path(model).iterdir()] == [f"{written}.explanation.png"]
    (folder / "labels.txt").unlink()
    status, _, err = run("explain", checkpoints / "bert", folder)
    assert status == 2
    assert "The model reads texts, and there are none in the folders" in err


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


def test_paths_that_are_not_files_are_refused(tmp_path):
    there = [tmp_path]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        there += [tmp_path / "pipe", Path("/dev/zero")]
    for path in there:
        with pytest.raises(UserError, match="it is not a file"):
            read_image(path)
    for path in (tmp_path / "missing", tmp_path / ("x" * 5000), Path("a\0b")):
        with pytest.raises(UserError, match="no such file"):
            read_image(path)


def test_large_files_are_not_opened(tmp_path):
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


def test_a_file_whose_name_is_not_valid_text(checkpoints, photo, run):
    try:
        odd = photo.rename(photo.with_name("odd\udcff.png"))
    except OSError:
        pytest.skip("the file system has no such names")
    status, _, err = run("explain", checkpoints / "timm", odd, "-m", "AttnLRP", "-o", "page.html")
    assert (status, err.count("\n")) == (0, 2)  # how pictures are prepared, and maps summed
    assert "odd\ufffd.png" in Path("page.html").read_text(encoding="utf-8")
    assert run("explain", checkpoints / "timm", odd)[0] == 0
