"""Formulas as SVG in the page: the same everywhere, with no script and no font to fetch."""

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator
from ziamath import Latex

SIZE = 18


def _svg(formula: str, *, inline: bool) -> str:
    if "&" in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
    drawing = Latex(formula, size=SIZE, color="currentColor", inline=inline)
    label = escape(" ".join(formula.split()), quote=True)
    style = f"vertical-align: {drawing.getyofst():.2f}px" if inline else ""
    return drawing.svg().replace(
        "<svg ", f'<svg class="formula" role="img" aria-label="{label}" style="{style}" ', 1
    )


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_svg(node.astext(), inline=True))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_svg(node.astext(), inline=False)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("drawn", (_inline, None), (_block, None))
    app.config.html_math_renderer = "drawn"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
