"""Relevance by words, sentences, turns and segments: nothing lost, nothing counted twice."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from captum_transformer.errors import InvalidInputError
from captum_transformer.groups import label_tokens, spans_of, spans_of_chat, sum_by_group
from captum_transformer.visualization import token_html, token_matrix, token_strip

TEXT = "Ann has a cat. Bob has a dog!\n\nWho has a “dog?” Bob. "
OFFSETS = [(0, 0), *[(at, at + 1) for at in range(len(TEXT))]]


def test_the_sum_stays() -> None:
    relevance = torch.randn(2, 3, len(OFFSETS), dtype=torch.float64)
    for unit in ("word", "sentence", "line", "paragraph"):
        labels = label_tokens(OFFSETS, spans_of(TEXT, unit), rest="rest")
        found = sum_by_group(relevance, labels)

        assert found.relevance.shape == (2, 3, len(found.names))
        torch.testing.assert_close(found.relevance.sum(-1), relevance.sum(-1))
        for number, name in enumerate(found.names):
            where = [label == name for label in labels]
            torch.testing.assert_close(found.relevance[..., number], relevance[..., where].sum(-1))


def test_parts_of_texts() -> None:
    assert list(spans_of(TEXT, "sentence")) == [
        "Ann has a cat.", "Bob has a dog!", "Who has a “dog?”", "Bob.",
    ]  # fmt: skip
    assert list(spans_of(TEXT, "paragraph")) == [
        "Ann has a cat. Bob has a dog!", "Who has a “dog?” Bob.",
    ]  # fmt: skip
    assert list(spans_of("no no no", "word")) == ["no", "no (2)", "no (3)"]
    assert list(spans_of("猫。犬！3.5 is it", "sentence")) == ["猫。", "犬！", "3.5 is it"]
    for unit in ("word", "sentence", "line", "paragraph"):
        for said, (start, end) in spans_of(TEXT, unit).items():
            assert TEXT[start:end] == said.removesuffix(" (2)").removesuffix(" (3)")
    with pytest.raises(InvalidInputError, match=r"must be one of.*'sentence'"):
        spans_of(TEXT, "chapter")  # type: ignore[arg-type]


def test_tokens_that_begin_with_a_space() -> None:
    spans: Any = {"one": (0, 3), "two": [(4, 7), (8, 11)]}
    assert label_tokens([(0, 3), (3, 7), (7, 11)], spans) == ["one", "two", "two"]


TEMPLATE = """{%- for message in messages -%}
<{{ message.role }}>{% if message.content is string %}{{ message.content | trim }}{% else %}
{%- for part in message.content -%}{{ part.text | default("<image>") }}{%- endfor -%}
{%- endif %}<end>
{%- endfor -%}{% if add_generation_prompt %}<assistant>{% endif %}"""


def chat_tokenizer(template: str = TEMPLATE) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, "?")))
    tokenizer.chat_template = template
    return tokenizer


def test_turns_of_a_chat() -> None:
    messages = [
        {"role": "system", "content": " Be short.\n"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "user"},
        {"role": "user", "content": "Hi"},
    ]
    text, found = spans_of_chat(chat_tokenizer(), messages, add_generation_prompt=True)

    assert text.startswith("<system>Be short.<end><user><image>Hi<end><assistant>user<end>")
    assert text.endswith("<user>Hi<end><assistant>")
    said = {name: [text[start:end] for start, end in spans] for name, spans in found.items()}
    assert said == {
        "system 1": ["Be short."], "user 1": ["Hi"], "assistant 1": ["user"], "user 2": ["Hi"],
    }  # fmt: skip
    assert found["assistant 1"] == [(text.index("<assistant>") + 11, text.index("user<end>") + 4)]
    offsets = [(at, at + 1) for at in range(len(text))]
    assert label_tokens(offsets, found, rest="template").count("template") == len(text) - 17


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "{% for message in messages %}{{ message.content | upper }}{% endfor %}",
        "{% for message in messages %}{{ message.content[:5] }}{% endfor %}",
        "{% for message in messages %}{{ message.content }}{{ message.content }}{% endfor %}",
    ],
)
def test_templates_that_change_what_is_said_are_refused(template: str) -> None:
    messages = [{"role": "user", "content": "What now?"}, {"role": "model", "content": "Go on."}]
    with pytest.raises(InvalidInputError, match="does not write what is said"):
        spans_of_chat(chat_tokenizer(template), messages)


def test_segments_of_images() -> None:
    pixels = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    segments = np.array([[7, 7], [2, 7]])
    found = sum_by_group(pixels, segments)
    assert found.names == [2, 7]
    expected = torch.stack([pixels[..., 1, 0], pixels.sum((2, 3)) - pixels[..., 1, 0]], -1)
    torch.testing.assert_close(found.relevance, expected)
    shown = found.relevance[..., found.numbers]
    assert shown.shape == pixels.shape
    assert torch.equal(shown[..., 0, 0], shown[..., 0, 1])


def test_groups_in_pictures() -> None:
    found = sum_by_group(torch.randn(2, 4), ["context", "context", "question", "context"])
    assert token_strip(found.names, found.relevance[0]).shape[2] == 3
    assert ">question</span>" in token_html(found.names, found.relevance[0])
    token_matrix(found.relevance, ["yes", "no"], found.names)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (["a", "b"], r"groups of the shape \(2,\) for relevance of the shape \(1, 3\)"),
        (["a"] * 4, r"shape \(4,\)"),
        (["a", None, "b"], "Token 1 is in no group"),
        (torch.tensor([0, -1, -1]), "2 of 3 tokens or pixels are in no group"),
        (torch.tensor([0.0, 1.0, 1.0]), "integers or names, got torch.float32"),
        (torch.tensor(0), r"shape \(\)"),
        (torch.zeros(2, 3).long(), r"shape \(2, 3\)"),
        ("abc", "got a str"),
        ({"a": (0, 3)}, "got a dict. `label_tokens` makes them"),
    ],
)
def test_groups_that_do_not_cover_are_refused(groups: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        sum_by_group(torch.ones(1, 3), groups)


def test_parts_that_do_not_cover_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="Token 1, at the characters 3 to 5, lies in none"):
        label_tokens([(0, 3), (3, 5)], {"one": (0, 3)})
    with pytest.raises(InvalidInputError, match="'one' and 'two' overlap at the characters 2 to 3"):
        label_tokens([(0, 3)], {"one": (0, 3), "two": (2, 4)})
    with pytest.raises(InvalidInputError, match=r"'one' is at \(3, 3\)"):
        label_tokens([(0, 3)], {"one": (3, 3)})
