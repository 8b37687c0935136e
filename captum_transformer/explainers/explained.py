"""The base class of explained texts and pictures."""

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Explained:
    """A model's output for an input, and the method that explains it.

    Attributes:
        label: the explained class or token, by name.
        target: the number of the class or token; None if there is no single one.
        score: the score that is explained.
        probability: its probability; None if it is unknown how to compute one from the score.
        predicted: whether it is the model's prediction, since no target was given.
        method: the name of the method.
    """

    label: str
    target: int | None
    score: float
    probability: float | None
    predicted: bool
    method: str

    @property
    def caption(self) -> str:
        """A description of the explained class and its score, in two lines."""
        likely = "" if self.probability is None else f", p = {self.probability:.2f}"
        found = "predicted, " if self.predicted else ""
        return f"{self.label}\n{found}score {self.score:.2f}{likely}, {self.method}"


def in_notebook() -> bool:
    """Returns whether the code runs in a notebook, which can show pictures and pages."""
    return hasattr(_shell(), "kernel")


def display(shown: Any) -> None:
    """Shows something in a notebook."""
    import_module("IPython.display").display(shown)


def _shell() -> Any:
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()
