"""The explanation of one input, before it is drawn or written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Given:
    """An input to explain.

    Attributes:
        name: Its name, in printable characters.
        path: Its file.
        text: The text itself, if it has no file.
        found: Whether it was found in a folder, and not named by the user.
    """

    name: str
    path: Path
    text: str | None = None
    found: bool = False


@dataclass(frozen=True)
class Class:
    """An explained class, answer or word.

    Attributes:
        number: Its id, or None if it has no single one.
        name: Its name; empty if it has none.
        score: The model's output for it.
        probability: The probability of the class, or None if unknown.
    """

    number: int | None
    name: str
    score: float
    probability: float | None = None

    def __str__(self) -> str:
        """Returns the name and the id, for instance ``tabby, tabby cat (281)``."""
        if self.number is None:
            return self.name
        return f"{self.name} ({self.number})" if self.name else f"class {self.number}"

    @property
    def said(self) -> str:
        """The score as text, with the probability if it is known."""
        likely = "" if self.probability is None else f", p = {self.probability:.2f}"
        return f"score {self.score:.2f}{likely}"


@dataclass(frozen=True)
class Explanation:
    """The attributions of one input, by method and class.

    Attributes:
        name: The name of the input.
        classes: The classes.
        attributions: For each method, one attribution for each class.
    """

    name: str
    classes: Sequence[Class]
    attributions: Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True)
class ImageExplanation(Explanation):
    """The explanation of an image.

    Attributes:
        image: The image as preprocessed for the model, ``(3, H, W)``, as uint8 values.
        grid: The rows and columns of patches that maps are summed by, or None to show pixels.
    """

    image: Tensor
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class TextExplanation(Explanation):
    """The explanation of a text.

    Attributes:
        words: Its words or tokens, one for each value of an attribution.
        tokens: The model's tokens.
        of_tokens: The attributions by token, in the form of `attributions`, which are by word.
        off_scale: For each word, whether it is a special token, which doesn't set the colour
            scale.
    """

    words: Sequence[str]
    tokens: Sequence[str]
    of_tokens: Mapping[str, Sequence[Tensor]]
    off_scale: Sequence[bool]
