"""People who only want a picture get one."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from datetime import datetime, timezone
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
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

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


@pytest.mark.parametrize("arguments", [
    ["--version"], ["--help"], ["explain", "--help"], ["inspect", "--help"], [],
    ["explain", "model", "-m", "no-such-method"],
])  # fmt: skip
def test_what_needs_no_model_does_not_wait_for_pytorch(arguments):
    code = "\n".join(
        [
            "import sys",
            "from captum_transformer.cli.main import main",
            "try: main(sys.argv[1:])",
            "except SystemExit: pass",
            "print(*sorted({'torch', 'PIL', 'numpy'} & set(sys.modules)), 'end')",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].strip() == "end"


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


def test_a_folder_of_inputs_and_names_that_meet(checkpoints, photo, run):
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


def test_what_of_a_folder_the_model_does_not_read_is_skipped(checkpoints, photo, run):
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


def test_an_input_is_never_written_over(checkpoints, photo, run):
    before = photo.read_bytes()
    status, _, err = run("explain", checkpoints / "timm", photo, "-o", photo)
    assert status == 2
    assert "one of the inputs" in err
    again = photo.with_name("photo.explanation.png")
    photo.rename(again)
    assert run("explain", checkpoints / "timm", again, photo.parent)[0] == 0
    assert again.read_bytes() == before


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


def test_a_hugging_face_model_of_images(checkpoints, photo, run):
    status, out, _ = run("explain", checkpoints / "hf-vit", photo, "-c", "dog")
    assert status == 0
    assert "dog (1), score" in out


def test_a_model_by_name_without_its_weights(photo, run):
    status, out, err = run("explain", "test_vit", photo, "--random-weights", "--top", "3")
    assert status == 0
    assert "explanations mean nothing" in err
    assert out.count("score") == 3
    # ImageNet's names come with timm.
    assert "class " not in out


def test_a_bar_over_many_files(checkpoints, photo, run, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = run("explain", checkpoints / "timm", photo, photo)
    assert "2/2" in err
    _, _, err = run("explain", checkpoints / "timm", photo)
    assert "/1" not in err


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


def test_the_default_is_said_with_its_reason(checkpoints, photo, run):
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


def test_inspect(checkpoints, run):
    status, out, _ = run("inspect", checkpoints / "timm")
    assert status == 0
    assert out.startswith("VisionTransformer, ")
    assert "input x: (1, 3, 32, 32)" in out
    assert "layer 0: blocks.0.attn" in out
    for name, line in (("bert", "input input_ids: (1, 5)"), ("hf-vit", "(1, 3, 32, 32)")):
        status, out, _ = run("inspect", checkpoints / name, "--length", "5")
        assert status == 0
        assert line in out
    assert "not read" not in out


def test_inspect_by_name_needs_no_weights(run):
    status, out, _ = run("inspect", "test_vit", "--image-size", "64")
    assert status == 0
    assert "(1, 3, 64, 64)" in out


def save_reader(kind, checkpoints, folder):
    """A model with a head of its own on the tokenizer of the classifier."""
    from shutil import copytree

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


def test_weights_as_trainings_save_them(checkpoints, photo, run):
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


def test_a_model_that_is_built_with_other_arguments(photo, run):
    torch.manual_seed(0)
    shallow = timm.create_model("test_vit", img_size=32, num_classes=3, depth=2)
    torch.save(shallow.state_dict(), "shallow.pth")
    explain = "explain", "shallow.pth", "--architecture", "test_vit", "--image-size", "32", photo
    status, _, err = run(*explain)
    assert status == 2
    assert "missing: blocks.2.norm1.weight" in err
    assert "--model-kwargs" in err
    assert run(*explain, "--model-kwargs", "depth=2", "-m", "AttnLRP")[0] == 0
    assert "not an argument of a model" in run(*explain, "--model-kwargs", "pretrained=True")[2]
    status, _, err = run("explain", "shallow.pth", "--architecture", "test_vitt", photo)
    assert status == 2
    assert "Did you mean test_vit" in err


def test_the_number_of_classes_is_read_off_all_heads(photo, run):
    torch.manual_seed(0)
    arguments = {"img_size": 32, "num_classes": 5, "depth": 2}
    two_heads = timm.create_model("deit_tiny_distilled_patch16_224", **arguments)
    torch.save(two_heads.state_dict(), "two.pth")
    status, _, err = run(
        "explain", "two.pth", photo, "--architecture", "deit_tiny_distilled_patch16_224",
        "--image-size", "32", "-m", "AttnLRP", "-c", "4", "--model-kwargs", "depth=2",
    )  # fmt: skip
    assert status == 0, err


def test_what_is_wrong_with_weights(checkpoints, photo, run):
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


def test_folders_without_a_processor_or_a_tokenizer(checkpoints, photo, run):
    from shutil import copytree, ignore_patterns

    copytree(checkpoints / "hf-vit", "vit", ignore=ignore_patterns("preprocessor*"))
    status, _, err = run("explain", "vit", photo)
    assert status == 2
    assert "or pass --size, --mean and --std" in err
    status, _, err = run(
        "explain", "vit", photo, "--size", "32", "--mean", "0.5", "--std", "0.5", "--no-crop"
    )
    assert status == 0
    assert "pictures: the whole, 32 x 32, mean 0.5/0.5/0.5, std 0.5/0.5/0.5" in err
    copytree(checkpoints / "bert", "bert", ignore=ignore_patterns("*token*"))
    status, _, err = run("explain", "bert", "--text", "a film")
    assert status == 2
    assert "only special tokens" in err


def test_errors_of_models_are_said_as_such(checkpoints, photo, run):
    status, _, err = run("explain", checkpoints / "hf-vit", photo, "--size", "48")
    assert status == 1
    assert "the model can't run on it (ValueError: Input image size" in err
    for values in (("--std", "0"), ("--mean", "nan")):
        assert run("explain", checkpoints / "timm", photo, *values)[0] == 2
