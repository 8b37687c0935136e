"""Wrong arguments and errors of the model are reported in a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("arguments", [
    ["--version"], ["--help"], ["explain", "--help"], ["inspect", "--help"], [],
    ["explain", "model", "-m", "no-such-method"],
])  # fmt: skip
def test_help_and_wrong_options_do_not_import_pytorch(arguments):
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


def test_errors_of_the_model_are_reported_as_its_own(checkpoints, photo, run):
    status, _, err = run("explain", checkpoints / "hf-vit", photo, "--size", "48")
    assert status == 1
    assert "the model can't run on it (ValueError: Input image size" in err
    for values in (("--std", "0"), ("--mean", "nan")):
        assert run("explain", checkpoints / "timm", photo, *values)[0] == 2


def test_texts_that_are_too_long_are_refused(checkpoints, photo, run):
    bert = checkpoints / "bert"
    for text, message in ((" \n", "the text is empty"), ("film " * 70, "the model takes 64")):
        status, _, err = run("explain", bert, "--text", text)
        assert status == 1
        assert message in err
    assert "it is an image, and the model reads texts" in run("explain", bert, photo)[2]


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
