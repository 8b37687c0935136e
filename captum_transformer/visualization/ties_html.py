"""The lines between two texts as HTML: one string without scripts or external resources."""

from collections.abc import Sequence
from html import escape

from torch import Tensor

from captum_transformer.visualization.canvas import fit, text_width
from captum_transformer.visualization.maps import Sign
from captum_transformer.visualization.panel import format_value
from captum_transformer.visualization.ties import check_words, strongest_ties
from captum_transformer.visualization.token_scale import OffScale, as_mask
from captum_transformer.visualization.tokens import visible

_ROW, _GAP, _TOP = 26, 240, 20  # pixels
_SIZE, _LONGEST = 11.0, 260.0

# Stronger versions of `token_html`'s colours, since ties are thin.
STYLE = """
.ties{--ground:#fff;--ink:#1a1a1a;--faint:#5c5c5c;--for:#b42d20;--against:#1560c8;
background:var(--ground);color:var(--ink);font:1rem/1.6 system-ui,sans-serif;padding:.75em 1em}
@media(prefers-color-scheme:dark){.ties{--ground:#161616;--ink:#f4f4f4;--faint:#a8a8a8;
--for:#ff7a66;--against:#6ea8ff}}
.ties figcaption{white-space:pre-line;color:var(--faint);font-size:.85rem}
.ties figcaption:first-line{color:var(--ink);font-size:1rem}
.ties small{color:var(--faint);font-size:.85rem}
.ties svg{display:block;max-width:100%;height:auto;font:15px system-ui,sans-serif}
.ties text{fill:var(--ink);dominant-baseline:middle}
.ties .off-scale,.ties .label{fill:var(--faint)}
.ties path{fill:none;stroke-width:3}
.ties .for{stroke:var(--for)}
.ties .against{stroke:var(--against)}
.ties path:hover{stroke-width:6;stroke-opacity:1}
"""


def word_ties_html(
    relevance: Tensor,
    one: Sequence[str],
    other: Sequence[str],
    caption: str = "",
    *,
    labels: tuple[str, str] = ("", ""),
    most: int = 400,
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: tuple[OffScale, OffScale] = (None, None),
) -> str:
    """Writes two texts as columns of words, with lines between the pairs of words.

    It follows the browser's light or dark theme. Hovering over a line highlights it and shows its
    value. All text is escaped. In a notebook: ``IPython.display.HTML(word_ties_html(...))``; as a
    file: `html_page`.

    Args:
        relevance: ``(N1, N2)``, one sample of what `BiLRP` returns.
        one: The tokens of the text at the left, or its words.
        other: The tokens or words of the text at the right.
        caption: One or several lines above the texts.
        labels: The descriptions of the texts.
        most: How many ties to draw, the strongest ones.
        sign: Which part of the relevance is shown, see `scale_map`.
        scale: The relevance of a tie that is opaque; None: the strongest.
        off_scale: For each token of both texts, whether it is left out when the scale is found,
            such as special tokens. These are grey.

    Returns:
        A ``<figure>`` with its own style.

    Raises:
        ValueError: If the relevance doesn't fit the tokens, or a value is not finite.

    Example:
        >>> import torch
        >>> html = word_ties_html(torch.eye(2), ["<b>", "film"], ["a", "movie"])
        >>> "&lt;b&gt;" in html, html.count("<path"), "<title>film – movie: 1</title>" in html
        (True, 2, True)
    """
    check_words(relevance, one, other)
    texts = one, other
    off = as_mask(off_scale[0], len(one)), as_mask(off_scale[1], len(other))
    ties = strongest_ties(relevance, most, off, sign=sign, scale=scale)
    words = [[fit(visible(token), _LONGEST, _SIZE) for token in text] for text in texts]
    # Browsers have other fonts, so some space is added.
    widths = [round(1.15 * max(text_width(word, _SIZE) for word in each)) + 16 for each in words]
    rows = max(map(len, texts))
    first = _TOP + _ROW * any(labels)
    tops = [first + _ROW * (rows - len(text)) / 2 for text in texts]
    left, right = widths[0], widths[0] + _GAP
    parts = []
    for (row, column), share, value in zip(ties.pairs, ties.shares, ties.values, strict=True):
        says = f"{visible(one[row])} – {visible(other[column])}: {format_value(value, digits=4)}"
        start, end = tops[0] + _ROW * row, tops[1] + _ROW * column
        middle = left + _GAP / 2
        parts.append(
            f'<path class="{"for" if share > 0 else "against"}" stroke-opacity="{abs(share):.3f}" '
            f'd="M{left} {start:g}C{middle:g} {start:g} {middle:g} {end:g} {right} {end:g}">'
            f"<title>{escape(says)}</title></path>"
        )
    for side, (x, anchor) in enumerate(((left - 8, "end"), (right + 8, "start"))):
        kinds = ["label", *("off-scale" if each else "word" for each in off[side].tolist())]
        for place, (kind, word) in enumerate(zip(kinds, [labels[side], *words[side]], strict=True)):
            parts.append(
                f'<text class="{kind}" x="{x}" y="{tops[side] + _ROW * (place - 1):g}" '
                f'text-anchor="{anchor}">{escape(word)}</text>'
            )
    width, height = right + widths[1], first + _ROW * (rows - 1) + _TOP
    limit = format_value(ties.scaled.scale)
    notes = [
        f"red: for the similarity, up to {limit}" if ties.scaled.scale else "all zero",
        f"blue: against it, down to −{limit}" if ties.scaled.signed and ties.scaled.scale else "",
        "grey: not on the scale" if any(bool(each.any()) for each in off) else "",
        ties.note,
    ]
    heading = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="ties" style="margin:0"><style>{STYLE}</style>{heading}'
        f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{''.join(parts)}</svg>"
        f"<small>{'; '.join(filter(None, notes))}</small></figure>"
    )
