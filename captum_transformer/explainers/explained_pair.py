"""Two texts with the relevance of the pairs of their words."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.explainers.explained import Explained, display, in_notebook
from captum_transformer.visualization import html_page, to_array, word_ties, word_ties_html
from captum_transformer.visualization.canvas import Image
from captum_transformer.visualization.panel import format_value
from captum_transformer.visualization.token_scale import TokenOptions
from captum_transformer.visualization.tokens import visible

_SHOWN = 10


@dataclass(frozen=True)
class ExplainedPair(Explained):
    """Two texts, and the contribution of each pair of their words to the similarity.

    Attributes:
        words: the words of each text, or the other units that relevance was summed by.
        relevance: the relevance of each word of the first with each of the second,
            ``(words, words)``.
        tokens: the tokens of each text.
        of_tokens: the relevance of their pairs, ``(tokens, tokens)``.
        special: which of the words are special tokens, such as ``[CLS]``.
    """

    words: tuple[list[str], list[str]]
    relevance: Tensor
    tokens: tuple[list[str], list[str]]
    of_tokens: Tensor
    special: tuple[list[bool], list[bool]]

    def show(self, **options: Unpack[TokenOptions]) -> None:
        """Shows lines between the words of the texts in a notebook, the strongest pairs elsewhere.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        if in_notebook():
            display(import_module("IPython.display").HTML(self.to_html(**options)))
        else:
            print(self)  # noqa: T201

    def to_html(self, **options: Unpack[TokenOptions]) -> str:
        """The texts with lines between their words, as a part of a page.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        given: Any = {"off_scale": self.special, **options}
        return word_ties_html(self.relevance, *self.words, self.caption, **given)

    def to_page(self, **options: Unpack[TokenOptions]) -> str:
        """The texts with lines between their words, as a page that can be written to a file.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        return html_page(self.label, [self.to_html(**options)])

    def picture(self, **options: Unpack[TokenOptions]) -> Image:
        """The texts with lines between their words, as a uint8 array ``(height, width, 3)``.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        given: Any = {"off_scale": self.special, **options}
        return to_array(word_ties(self.relevance, *self.words, title=self.caption, **given))

    def to_frame(self) -> Any:
        """A data frame of pandas with a row for each pair: ``word``, ``other``, ``relevance``.

        Raises:
            ImportError: if pandas isn't installed.
        """
        pairs = [(word, other) for word in self.words[0] for other in self.words[1]]
        words, others = zip(*pairs, strict=True)
        rows = {"word": words, "other": others, "relevance": self.relevance.flatten().tolist()}
        return import_module("pandas").DataFrame(rows)

    def top(self, count: int = 5) -> list[tuple[str, str, float]]:
        """The pairs with the largest absolute relevance, without special tokens.

        Args:
            count: the number of pairs.
        """
        named = [
            (word, other, value)
            for word, no_word, row in zip(
                self.words[0], self.special[0], self.relevance.tolist(), strict=True
            )
            for other, none, value in zip(self.words[1], self.special[1], row, strict=True)
            if not (no_word or none)
        ]
        return sorted(named, key=lambda each: -abs(each[2]))[:count]

    def __str__(self) -> str:
        """Returns the caption, and a line for each of the strongest pairs."""
        pairs = self.top(_SHOWN)
        values = [format_value(value) for _, _, value in pairs]
        width = max(map(len, values), default=0)
        lines = [
            f"{value:>{width}} {visible(word)} – {visible(other)}"
            for value, (word, other, _) in zip(values, pairs, strict=True)
        ]
        return "\n".join([*map(visible, self.caption.splitlines()), *lines])

    def _repr_html_(self) -> str:
        return self.to_html()
