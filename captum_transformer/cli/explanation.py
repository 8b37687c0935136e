"""The explanation of one input, before it is drawn or written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Given:
    """An input to be explained.

    Attributes:
        name: What it is called, in characters that may be printed.
        path: Its file.
        text: The text itself, where it has no file.
        found: Whether it was found in a folder, and not named.
    """

    name: str
    path: Path
    text: str | None = None
    found: bool = False


@dataclass(frozen=True)
class Class:
    """A class that is explained, or an answer, or a word.

    Attributes:
        number: Its id; None for what has no single one.
        name: Its name; empty if it has none.
        score: The model's output for it.
        probability: The probability of the class, if it is known.
    """

    number: int | None
    name: str
    score: float
    probability: float | None = None

    def __str__(self) -> str:
        """For instance ``tabby, tabby cat (281)``."""
        if self.number is None:
            return self.name
        return f"{self.name} ({self.number})" if self.name else f"class {self.number}"

    @property
    def said(self) -> str:
        """The score as it is written, with the probability if that is known."""
        likely = "" if self.probability is None else f", p = {self.probability:.2f}"
        return f"score {self.score:.2f}{likely}"


@dataclass(frozen=True)
class Explanation:
    """The attributions of one input, by method and class.

    Attributes:
        name: What the input is called: its path, or the beginning of its text.
        classes: The classes.
        attributions: For each method, one attribution for each class.
    """

    name: str
    classes: Sequence[Class]
    attributions: Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True)
class ImageExplanation(Explanation):
    """An image.

    Attributes:
        image: What the model has seen of it, ``(3, H, W)``, as uint8 values.
        grid: The rows and columns of patches that maps are summed by; None: they show pixels.
    """

    image: Tensor
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class TextExplanation(Explanation):
    """A text.

    Attributes:
        words: Its words or tokens, one for each value of an attribution.
        tokens: The model's tokens.
        of_tokens: The attributions by token, as `attributions` has them by word.
        off_scale: For each of the words, whether it is a special token, which doesn't set the
            scale of the colours.
    """

    words: Sequence[str]
    tokens: Sequence[str]
    of_tokens: Mapping[str, Sequence[Tensor]]
    off_scale: Sequence[bool]
