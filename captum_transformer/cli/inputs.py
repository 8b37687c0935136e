"""Finds the inputs to explain: files, folders and texts."""

from collections.abc import Sequence
from pathlib import Path

from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Given
from captum_transformer.cli.progress import complain
from captum_transformer.cli.read import IMAGE_SUFFIXES, is_folder
from captum_transformer.visualization.tokens import visible

TEXT_SUFFIXES = frozenset({".txt"})


def given_inputs(inputs: Sequence[str], texts: Sequence[str]) -> list[Given]:
    """Returns all inputs to explain.

    Args:
        inputs: Files, and folders that are searched for images and texts.
        texts: Texts themselves.

    Raises:
        UserError: If a folder has no images or texts, or there are no inputs.
    """
    given = [
        Given(f"text {number}", Path(f"text-{number}"), text)
        for number, text in enumerate(texts, start=1)
    ]
    for name in inputs:
        path = Path(name)
        if not is_folder(path):
            given.append(Given(visible(name), path))
            continue
        every = [file for file in path.rglob("*") if file.is_file()]
        known = IMAGE_SUFFIXES | TEXT_SUFFIXES
        files = sorted(file for file in every if file.suffix.lower() in known)
        if not files:
            raise UserError(f"There are no images or texts in {name}.")
        if others := len(every) - len(files):
            complain(f"{name}: skipped files that are neither images nor texts: {others}")
        given += [Given(visible(str(file)), file, found=True) for file in files]
    if not given:
        raise UserError(
            "There is nothing to explain: give image files, .txt files, --text or --prompt."
        )
    return given


def readable(given: Sequence[Given], *, images: bool) -> list[Given]:
    """Filters inputs that a model can read; files named by the user are kept, to report errors.

    Args:
        given: All inputs.
        images: Whether the model reads images; otherwise it reads texts.

    Raises:
        UserError: If nothing is left.
    """
    suffixes, read = (IMAGE_SUFFIXES, "images") if images else (TEXT_SUFFIXES, "texts")
    kept = [each for each in given if not each.found or each.path.suffix.lower() in suffixes]
    if not kept:
        raise UserError(f"The model reads {read}, and there are none in the folders.")
    if others := len(given) - len(kept):
        complain(f"skipped files in folders, as the model reads {read}: {others}")
    return kept
