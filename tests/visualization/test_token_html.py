import re
from html.parser import HTMLParser

import pytest
import torch

from captum_transformer.visualization import html_page, token_ansi, token_html
from captum_transformer.visualization.colors import luminance
from captum_transformer.visualization.token_html import STYLE
from tests.visualization.test_tokens import NASTY


class Read(HTMLParser):
    """The tags and the text that a browser would see."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.boxes, self.titles = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "span":
            self.boxes.append("")
            self.titles.append(dict(attrs)["title"])

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "span" and data.strip():
            self.boxes[-1] += data


NASTIER = [*NASTY, "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style>", "'"]


def test_whatever_a_text_says_is_text():
    html = html_page(
        "<script>", [token_html(NASTIER, torch.ones(len(NASTIER)), "</figcaption><script>")]
    )
    read = Read(html)
    known = {"html", "head", "meta", "title", "style", "body", "section", "figure"}
    assert set(read.tags) == known | {"figcaption", "p", "span", "small"}
    assert "<script>alert(1)</script>" in read.boxes
    assert "<b>" in read.boxes


def test_nothing_is_fetched():
    html = html_page("a", [token_html(["a"], torch.ones(1))])
    assert not re.search(r"https?:|<link|<script|@import|url\(", html)
    assert "default-src 'none'" in html


def test_the_exact_value_is_shown():
    read = Read(token_html(["a", "b"], torch.tensor([0.12345, -2.0])))
    assert read.titles[:2] == ["0.1235", "−2"]


def test_a_fixed_scale_makes_texts_comparable():
    weak, strong = torch.tensor([0.5]), torch.tensor([1.0])
    assert "--share:1.000" in token_html(["a"], weak)
    assert "--share:0.500" in token_html(["a"], weak, scale=1.0)
    assert "--share:1.000" in token_html(["a"], strong, scale=1.0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sign", ["for", "against"])
def test_ink_is_readable_in_both_schemes(scheme, sign):
    light, dark = STYLE.split("@media(prefers-color-scheme:dark)")
    style = light if scheme == "light" else dark
    ink = re.search(r"--ink:#(\w\w)", style)[1]
    ground = [int(part) / 255 for part in re.search(rf"--{sign}:([\d ]+)", style)[1].split()]
    pair = sorted([luminance([int(ink, 16) / 255] * 3), luminance(ground)])
    assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4.5


def test_a_text_gives_the_terminal_no_orders():
    line = token_ansi(["\x1b[2J", "a\x07b", "c\rd", "\x9b31m"], torch.tensor([1.0, -1.0, 0.0, 0.5]))
    orders = re.sub(r"\x1b\[38;2;[\d;]+m|\x1b\[0m", "", line)
    assert orders.isprintable()
    assert len(re.findall("\x1b", line)) == 8


def test_terminal_colours_have_signs():
    (strong, weak, opposed) = re.findall(
        r"48;2;(\d+);(\d+);(\d+)m", token_ansi(list("abc"), torch.tensor([1.0, 0.0, -1.0]))
    )
    assert int(strong[0]) > int(strong[2]) + 100
    assert int(opposed[2]) > int(opposed[0]) + 100
    assert max(map(int, weak)) - min(map(int, weak)) <= 2


def test_arguments_that_do_not_fit_are_refused():
    for write in (token_html, token_ansi):
        with pytest.raises(ValueError, match="2 tokens need"):
            write(["a", "b"], torch.ones(3))
