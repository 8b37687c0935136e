"""A text with the relevance of its words."""

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer.explainers.explained import Explained, display, in_notebook
from captum_transformer.visualization import html_page, token_ansi, token_html, token_strip
from captum_transformer.visualization.canvas import Image
from captum_transformer.visualization.panel import format_value
from captum_transformer.visualization.token_scale import TokenOptions
from captum_transformer.visualization.tokens import visible


@dataclass(frozen=True)
class ExplainedText(Explained):
    """A text, or a pair of texts, with the relevance of its words.

    Attributes:
        words: the words, or the other units that relevance was summed by.
        relevance: the relevance of each, ``(words,)``.
        tokens: the model's tokens.
        of_tokens: the relevance of each, ``(tokens,)``.
        special: which of the words are special tokens, such as ``[CLS]``.
    """

    words: list[str]
    relevance: Tensor
    tokens: list[str]
    of_tokens: Tensor
    special: list[bool]

    def show(self, **options: Unpack[TokenOptions]) -> None:
        """Shows the text in colours, in a notebook or a terminal, and as plain lines elsewhere.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        if in_notebook():
            display(import_module("IPython.display").HTML(self.to_html(**options)))
        elif sys.stdout.isatty():
            colours = token_ansi(self.words, self.relevance, **self._options(options))
            print("\n".join([*self._caption_lines(), colours]))  # noqa: T201
        else:
            print(self)  # noqa: T201

    def to_html(self, **options: Unpack[TokenOptions]) -> str:
        """The text in colours, as a part of a page.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        return token_html(self.words, self.relevance, self.caption, **self._options(options))

    def to_page(self, **options: Unpack[TokenOptions]) -> str:
        """The text in colours, as a page that can be written to a file.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        return html_page(self.label, [self.to_html(**options)])

    def picture(self, **options: Unpack[TokenOptions]) -> Image:
        """The text in colours, as a uint8 array ``(height, width, 3)``.

        Args:
            **options: see :class:`~captum_transformer.visualization.TokenOptions`.
        """
        return token_strip(self.words, self.relevance, self.caption, **self._options(options))

    def to_frame(self) -> Any:
        """A data frame of pandas with a row for each word: ``word``, ``relevance``, ``special``.

        Raises:
            ImportError: if pandas isn't installed.
        """
        rows = {"word": self.words, "relevance": self.relevance.tolist(), "special": self.special}
        return import_module("pandas").DataFrame(rows)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The words with the largest absolute relevance, without special tokens.

        Args:
            count: the number of words.
        """
        pairs = zip(self.words, self.relevance.tolist(), self.special, strict=True)
        named = [(word, value) for word, value, special in pairs if not special]
        return sorted(named, key=lambda pair: -abs(pair[1]))[:count]

    def __str__(self) -> str:
        """Returns the caption, and a line for each word."""
        values = [format_value(value) for value in self.relevance.tolist()]
        width = max(map(len, values))
        words = [f"{v:>{width}} {visible(w)}" for v, w in zip(values, self.words, strict=True)]
        return "\n".join([*self._caption_lines(), *words])

    def _caption_lines(self) -> list[str]:
        return [visible(line) for line in self.caption.splitlines()]

    def _repr_html_(self) -> str:
        return self.to_html()

    def _options(self, options: TokenOptions) -> TokenOptions:
        # Special tokens may have more relevance than all words together.
        return {"off_scale": self.special, **options}
