"""Explanations are written as pictures, pages and tensors."""

import sys
from pathlib import Path


def test_colours_in_the_terminal(checkpoints, run, monkeypatch):
    bert = checkpoints / "bert"
    assert "\x1b[" not in run("explain", bert, "--text", "a film")[1]
    assert "\x1b[" in run("explain", bert, "--text", "a film", "--color", "always")[1]


def test_special_tokens_set_no_scale_unless_asked(checkpoints, run):
    explain = "explain", checkpoints / "bert", "--text", "a film", "--color", "always"
    dim = "\x1b[2m[CLS]"
    assert dim in run(*explain)[1]
    assert dim in run(*explain, "--tokens")[1]
    assert dim not in run(*explain, "--special-in-scale")[1]
    run("explain", checkpoints / "bert", "--text", "a [PAD] film", "-o", "page.html")
    assert Path("page.html").read_text(encoding="utf-8").count('off-scale"') == 4  # with the legend


def test_all_formats_into_a_folder(checkpoints, photo, run):
    (photo.parent / "said.txt").write_text("an unbelievable film", encoding="utf-8")
    status, out, _ = run(
        "explain", checkpoints / "timm", photo, "-o", "new/folder", "-f", "png", "-f", "html",
        "-f", "safetensors", "--smooth", "--top", "2", "--sign", "absolute", "--scale", "0.01",
    )  # fmt: skip
    assert status == 0
    assert len(out.splitlines()) == 4
    names = {path.name for path in Path("new/folder").iterdir()}
    assert names == {f"photo.explanation.{end}" for end in ("png", "html", "safetensors")}


def test_one_page_for_all_inputs(checkpoints, run):
    bert = checkpoints / "bert"
    status, _, _ = run(
        "explain", bert, "--text", "<script>alert(1)</script>", "--text", "film", "-o", "page.html"
    )
    page = Path("page.html").read_text(encoding="utf-8")
    assert status == 0
    assert page.count("<h2>") == 2
    assert "<script" not in page
    assert "&lt;" in page


def test_a_picture_in_a_page(checkpoints, photo, run):
    run("explain", checkpoints / "timm", photo, "-o", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http-equiv", "")


def test_an_input_is_never_written_over(checkpoints, photo, run):
    before = photo.read_bytes()
    status, _, err = run("explain", checkpoints / "timm", photo, "-o", photo)
    assert status == 2
    assert "one of the inputs" in err
    again = photo.with_name("photo.explanation.png")
    photo.rename(again)
    assert run("explain", checkpoints / "timm", again, photo.parent)[0] == 0
    assert again.read_bytes() == before


def test_a_progress_bar_for_several_files(checkpoints, photo, run, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = run("explain", checkpoints / "timm", photo, photo)
    assert "2/2" in err
    _, _, err = run("explain", checkpoints / "timm", photo)
    assert "/1" not in err


def test_outputs_that_cannot_be_written_are_refused(checkpoints, photo, run):
    for output, message in ((["-o", "a.gif"], "must be a folder or end in"),
                            (["-o", "a.png", "-f", "html"], "something else"),
                            (["-o", photo / "folder"], "can't be made")):  # fmt: skip
        status, _, err = run("explain", checkpoints / "timm", photo, *output)
        assert status == 2
        assert message in err
