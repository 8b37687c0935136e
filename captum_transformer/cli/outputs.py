"""Writes explanations to one file, to files in a folder, or to the terminal."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from torch import Tensor

from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Explanation, Given, TextExplanation
from captum_transformer.cli.progress import say, wants_color
from captum_transformer.cli.write import FORMATS
from captum_transformer.visualization import MapOptions, token_ansi
from captum_transformer.visualization.tokens import visible


class Outputs:
    """Writes explanations, and prints the paths of the files.

    Args:
        arguments: The user's arguments.
        given: All inputs, whose files are not overwritten.

    Raises:
        UserError: If the output is invalid.
    """

    def __init__(self, arguments: argparse.Namespace, given: Sequence[Given]) -> None:
        self._color = wants_color(arguments.color, sys.stdout)
        self._options: MapOptions = {"sign": arguments.sign, "smooth": arguments.smooth}
        if arguments.scale is not None:
            self._options["scale"] = arguments.scale
        output = None if arguments.output is None else Path(arguments.output)
        ending = "" if output is None else output.suffix.removeprefix(".").lower()
        self._file = output if ending in FORMATS else None
        self._folder = Path() if output is None else output
        # Unless files are requested, texts are shown in the terminal.
        self._files_of_texts = output is not None or bool(arguments.format)
        self._formats = [ending] if self._file else arguments.format or ["png"]
        files = [each.path for each in given if each.text is None]
        self._taken = {_real(path) for path in files}
        self._written: set[str] = set()
        self._all: list[Explanation] = []
        if self._file and arguments.format and arguments.format != [ending]:
            raise UserError(f"--output names a .{ending}, --format says something else.")
        if output is not None and output.suffix and not self._file and not output.is_dir():
            raise UserError(
                f"--output must be a folder or end in {', '.join(f'.{name}' for name in FORMATS)}, "
                f"got {output}."
            )
        if self._file and any(_is_same(self._file, path) for path in files):
            raise UserError(f"{self._file} is one of the inputs and would be overwritten.")
        folder = self._file.parent if self._file else self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The folder {folder} can't be made: {error.strerror}.") from error

    def add(self, given: Given, explanation: Explanation) -> None:
        """Writes an explanation, or keeps it for the common file.

        Args:
            given: The explained input.
            explanation: The explanation.
        """
        self._tell(explanation)
        if self._file:
            self._all.append(explanation)
        elif self._files_of_texts or not isinstance(explanation, TextExplanation):
            for ending in self._formats:
                path = self._free(given, ending)
                FORMATS[ending](path, [explanation], self._options)
                say(f"  {visible(str(path))}")

    def finish(self) -> None:
        """Writes the common file, if there is one.

        Raises:
            UserError: If it can't be written.
        """
        if self._file and self._all:
            try:
                FORMATS[self._formats[0]](self._file, self._all, self._options)
            except OSError as error:
                raise UserError(f"{self._file} can't be written: {error.strerror}.") from error
            say(f"  {visible(str(self._file))}")

    def _tell(self, explanation: Explanation) -> None:
        classes = "; ".join(f"{each}, {each.said}" for each in explanation.classes)
        say(visible(f"{explanation.name}: {classes}"))
        if isinstance(explanation, TextExplanation) and not self._files_of_texts:
            for method, every in explanation.attributions.items():
                for chosen, values in zip(explanation.classes, every, strict=True):
                    say(f"  {method}, {visible(str(chosen))}")
                    say(self._words(explanation.words, values, explanation.off_scale))

    def _words(self, words: Sequence[str], values: Tensor, off_scale: Sequence[bool]) -> str:
        if self._color:
            sign, scale = self._options["sign"], self._options.get("scale")
            line = token_ansi(words, values, sign=sign, scale=scale, off_scale=off_scale)
            return f"  {line}"
        # For other programs: one word and its relevance per line.
        lines = zip(words, values.tolist(), strict=True)
        return "\n".join(f"{visible(word)}\t{value:.6g}" for word, value in lines)

    def _free(self, given: Given, ending: str) -> Path:
        """Returns a path that differs from all inputs and other outputs of this run."""
        stem, number = given.path.stem, 1
        path = self._folder / f"{stem}.explanation.{ending}"
        while _real(path) in self._taken or _alike(path) in self._written:
            number += 1
            path = self._folder / f"{stem}-{number}.explanation.{ending}"
        self._written.add(_alike(path))
        return path


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # one of them isn't there, or can't be
        return _real(path) == _real(other)


def _alike(path: Path) -> str:
    """Returns what equals for names that are one file where upper and lower case are the same."""
    return normalize("NFC", path.name).casefold()


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    # The name is invalid for a file.
    except (OSError, ValueError):
        return path
