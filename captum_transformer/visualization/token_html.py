"""The tokens of a text as HTML: one string without scripts, fonts or external resources."""

from collections.abc import Sequence
from html import escape

from torch import Tensor

from captum_transformer.visualization.maps import Sign
from captum_transformer.visualization.panel import format_value
from captum_transformer.visualization.token_scale import OffScale, scale_tokens

# On the strongest colours, the text of each scheme has a contrast above 4.5.
STYLE = """
.relevance{--ground:#fff;--ink:#1a1a1a;--faint:#5c5c5c;--for:224 93 72;--against:93 143 226;
background:var(--ground);color:var(--ink);font:1rem/1.9 system-ui,sans-serif;padding:.75em 1em}
@media(prefers-color-scheme:dark){.relevance{--ground:#161616;--ink:#f4f4f4;--faint:#a8a8a8;
--for:166 52 36;--against:36 88 176}}
.relevance p{margin:.25em 0;overflow-wrap:anywhere}
.relevance figcaption,.relevance small{color:var(--faint);font-size:.85rem}
.relevance small span{color:var(--ink)}
.relevance figcaption:first-line{color:var(--ink);font-size:1rem}
.relevance figcaption{white-space:pre-line}
.relevance span{border-radius:.2em;padding:.15em .25em;margin:0 .05em;white-space:pre-wrap}
.relevance .for{background:rgb(var(--for)/var(--share))}
.relevance .against{background:rgb(var(--against)/var(--share))}
.relevance .off-scale{background:none;outline:1px solid var(--faint);outline-offset:-1px;
border-bottom:.25em solid rgb(var(--for)/var(--share));padding-bottom:0}
.relevance .against.off-scale{border-bottom-color:rgb(var(--against)/var(--share))}
"""


def token_html(
    tokens: Sequence[str],
    attribution: Tensor,
    caption: str = "",
    *,
    sign: Sign = "auto",
    scale: float | None = None,
    off_scale: OffScale = None,
) -> str:
    """Writes a text with a colour behind each token, light or dark as the reader's browser is.

    All text is escaped. Hovering over a token shows its exact value. In a notebook:
    ``IPython.display.HTML(token_html(...))``; as a file: `html_page`.

    Args:
        tokens: The N tokens as strings, or its words, see `merge_words`.
        attribution: ``(N,)`` or ``(N, D)``, as for `token_strip`.
        caption: One or several lines above the text.
        sign: Which part of the attribution is shown, see `scale_map`.
        scale: The attribution with the strongest colour; None: each text has its own.
        off_scale: For each token, whether it is left out when the scale is found, see
            `token_strip`. These are underlined in their colour.

    Returns:
        A ``<figure>`` with its own style.

    Raises:
        ValueError: If the tokens and the attribution don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> html = token_html(["<b>", "fine"], torch.tensor([-0.5, 1.0]))
        >>> "&lt;b&gt;" in html, 'title="−0.5"' in html
        (True, True)
    """
    found = scale_tokens(tokens, attribution, off_scale=off_scale, sign=sign, scale=scale)
    scaled = found.scaled
    text = " ".join(
        _box(label, share, format_value(value, digits=4), off_scale=off)
        for label, share, value, off in zip(
            found.labels, scaled.values.tolist(), found.values, found.off_scale, strict=True
        )
    )
    ends = [-1.0, 0.0, 1.0] if scaled.signed else [0.0, 1.0]
    legend = " ".join(
        _box(format_value(end * scaled.scale), end, format_value(end * scaled.scale))
        for end in (ends if scaled.scale else [0.0])
    )
    if any(found.off_scale):
        legend += " " + _box("not on the scale", 0.0, "left out of the scale", off_scale=True)
    heading = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="relevance" style="margin:0"><style>{STYLE}</style>{heading}'
        f"<p>{text}</p><small>{legend}</small></figure>"
    )


def html_page(title: str, parts: Sequence[str]) -> str:
    """Puts pieces of HTML into one self-contained page.

    Args:
        title: The page's title, which is escaped.
        parts: Pieces of HTML, as `token_html` and `picture_html` return them; they are *not*
            escaped.

    Returns:
        The page. Its content security policy prevents it from loading or running anything.

    Example:
        >>> page = html_page("Why?", ["<p>Because.</p>"])
        >>> page.startswith("<!doctype html>"), "<title>Why?</title>" in page
        (True, True)
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(f"<section>{part}</section>" for part in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>:root{{color-scheme:light dark}}"
        "body{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "img{max-width:100%;height:auto}section{margin:0 0 2rem}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _box(text: str, share: float, title: str, *, off_scale: bool = False) -> str:
    kind = ("for" if share >= 0 else "against") + " off-scale" * off_scale
    return (
        f'<span class="{kind}" style="--share:{abs(share):.3f}" title="{escape(title)}">'
        f"{escape(text)}</span>"
    )
