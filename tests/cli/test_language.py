"""Why a language model answers what it answers, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, BartForConditionalGeneration, GPT2LMHeadModel

from captum_transformer import AttnLRP, GenericAttentionRelevance
from captum_transformer.groups import label_tokens, spans_of, sum_by_group
from captum_transformer.visualization import merge_words

PROMPT, ANSWER = "Paris is the capital of", " France ."


def loaded(checkpoints, name="gpt2", kind=GPT2LMHeadModel):
    folder = checkpoints / name
    return kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def numbers(out):
    return {
        word: float(value) for word, value in (line.split("\t") for line in out.splitlines()[2:])
    }


def test_the_numbers_are_those_of_the_method(checkpoints, run):
    status, out, err = run("explain", checkpoints / "gpt2", "--prompt", PROMPT, "--answer", ANSWER)
    assert status == 0, err
    assert "AttnLRP, since" in err
    model, tokenizer = loaded(checkpoints)
    coded = tokenizer(PROMPT + ANSWER, return_offsets_mapping=True, return_tensors="pt")
    ids = coded.input_ids
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    steps = ids.shape[1] - prompt.shape[1]
    values = AttnLRP(model).attribute_generated(
        prompt, ids, spans=[(0, steps)], include_generated=True
    )[0, 0]
    words, sums = merge_words(coded.tokens(), values, coded.offset_mapping[0], PROMPT + ANSWER)
    assert words == [*PROMPT.split(), "France", "."]
    found = numbers(out)
    assert list(found) == [*PROMPT.split(), "→", "France", "."]
    assert found.pop("→") == 0
    np.testing.assert_allclose(list(found.values()), sums, rtol=1e-3, atol=1e-6)
    logits = model(ids).logits[0, -steps - 1 : -1].gather(1, ids[0, -steps:, None])
    first, second = out.splitlines()[:2]
    assert first == f"text 1: “France .”, score {float(logits.sum().detach()):.2f}"
    assert second == "  AttnLRP, “France .”"


def test_one_answer_rather_than_another(checkpoints, run):
    status, out, err = run(
        "explain", checkpoints / "gpt2", "--prompt", PROMPT, "--answer", ANSWER,
        "--rather-than", " Italy .", "-m", "GenericAttentionRelevance", "-o", "all.safetensors",
    )  # fmt: skip
    assert status == 0, err
    model, tokenizer = loaded(checkpoints)
    prompt, answer, other = (
        tokenizer(text, return_tensors="pt").input_ids for text in (PROMPT, ANSWER, " Italy .")
    )
    same = int((answer[0, : other.shape[1]] != other[0, : answer.shape[1]]).long().argmax())
    expected = GenericAttentionRelevance(model).attribute_generated(
        prompt, torch.cat([prompt, answer], 1), rather_than=int(other[0, same]),
        spans=[(same, same + 1)], include_generated=True,
    )  # fmt: skip
    (found,) = load_file("all.safetensors").values()
    torch.testing.assert_close(found, expected[0, 0])
    with safe_open("all.safetensors", "pt") as file:
        (about,) = json.loads(file.metadata()["inputs"])
    assert len(about["tokens"]) == len(found)
    assert " rather than “" in out


def test_what_the_model_generates_with_hops(checkpoints, run):
    status, _, err = run(
        "explain", checkpoints / "gpt2", "--prompt", PROMPT, "--generate", "4", "--each",
        "--hops", "all", "-m", "AttnLRP", "-o", "all.safetensors",
    )  # fmt: skip
    assert status == 0, err
    model, tokenizer = loaded(checkpoints)
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    sequences = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False
    )
    expected = AttnLRP(model).attribute_generated(
        prompt, sequences, hops=None, include_generated=True
    )
    found = load_file("all.safetensors")
    assert len(found) == sequences.shape[1] - prompt.shape[1]
    for number, row in enumerate(expected[0]):
        torch.testing.assert_close(found[f"0/AttnLRP/{number}"], row, rtol=1e-4, atol=1e-6)


def test_parts_of_an_answer_by_sentence(checkpoints, run):
    text = "Rome is the capital of Italy . Where? In Paris."
    status, out, err = run(
        "explain", checkpoints / "gpt2", "--prompt", text, "--answer", " In Rome. In Paris.",
        "--part", "Paris", "--by", "sentence", "-m", "AttnLRP",
    )  # fmt: skip
    assert status == 0, err
    assert [line.split("\t")[0] for line in out.splitlines()[2:]] == [
        "Rome is the capital of Italy .", "Where?", "In Paris.", "→", "In Rome.", "In Paris.",
    ]  # fmt: skip
    model, tokenizer = loaded(checkpoints)
    coded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    answer = tokenizer(" In Rome. In Paris.", return_offsets_mapping=True, return_tensors="pt")
    inside = [a < 18 and b > 13 for a, b in answer.offset_mapping[0].tolist()]
    values = AttnLRP(model).attribute_generated(
        coded.input_ids,
        torch.cat([coded.input_ids, answer.input_ids], 1),
        spans=torch.tensor([inside]),
    )[0, 0]
    labels = label_tokens(coded.offset_mapping[0], spans_of(text, "sentence"))
    sums = sum_by_group(values, labels).relevance
    said = [float(line.split("\t")[1]) for line in out.splitlines()[2:]]
    np.testing.assert_allclose(said[:3], sums, rtol=1e-3, atol=1e-6)


def test_an_encoder_decoder(checkpoints, run):
    status, _, err = run(
        "explain", checkpoints / "bart", "--prompt", "Where?", "--answer", "In Paris.",
        "-m", "AttnLRP", "-o", "all.safetensors",
    )  # fmt: skip
    assert status == 0, err
    model, tokenizer = loaded(checkpoints, "bart", BartForConditionalGeneration)
    ids = tokenizer("Where?", return_tensors="pt").input_ids
    decoded = torch.cat(
        [torch.tensor([[1]]), tokenizer("In Paris.", return_tensors="pt").input_ids], 1
    )
    expected = AttnLRP(model).attribute_generated(
        {"input_ids": ids}, decoded, generated_as="decoder_input_ids",
        spans=[(0, decoded.shape[1] - 1)], include_generated=True,
    )  # fmt: skip
    (found,) = load_file("all.safetensors").values()
    pieces = [expected["input_ids"], expected["decoder_input_ids"][..., 1:]]
    torch.testing.assert_close(found, torch.cat(pieces, 2)[0, 0], rtol=1e-4, atol=1e-6)


def test_chats_and_files(checkpoints, run):
    Path("question.txt").write_text("Where?\n", encoding="utf-8")
    chat = "question.txt", "--generate", "2", "--chat"
    status, _, err = run("explain", checkpoints / "gpt2", *chat, "-o", "page.html")
    assert status == 0, err
    page = Path("page.html").read_text(encoding="utf-8")
    assert ">Where?</span>" in page or (">Where</span>" in page and ">?</span>" in page)
    assert "assistant" in page
    assert page.count('off-scale"') >= 3  # the template's special tokens
    status, out, _ = run("explain", checkpoints / "gpt2", *chat, "-m", "AttnLRP", "--tokens")
    assert status == 0
    assert "<s>\t" in out


def test_classifiers_by_sentence(checkpoints, run):
    status, out, err = run(
        "explain", checkpoints / "bert", "--text", "An unbelievable film! A film.",
        "--by", "sentence", "-m", "AttnLRP",
    )  # fmt: skip
    assert status == 0, err
    assert [line.split("\t")[0] for line in out.splitlines()[2:]] == [
        "other tokens", "An unbelievable film!", "A film.",
    ]  # fmt: skip


ASKED = "--prompt", PROMPT, "--answer", ANSWER


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        ("gpt2", ["--prompt", PROMPT], "is a language model: give its answer with --answer TEXT"),
        ("gpt2", [*ASKED, "--generate", "2"], "Give --answer or --generate, not both"),
        ("gpt2", ["--prompt", PROMPT, "--each"], "--each needs an answer"),
        ("gpt2", ["--prompt", PROMPT, "--hops", "all"], "--hops needs an answer"),
        ("gpt2", [*ASKED, "--each", "--part", "France"], "--part and --each each say"),
        ("gpt2", [*ASKED, "--class", "1"], "has no classes"),
        ("gpt2", [*ASKED, "--top", "1"], "has no classes"),
        ("gpt2", [*ASKED, "--part", "Italy"], "'Italy' is in the answer 0 times"),
        ("gpt2", [*ASKED, "--part", " "], "' ' is in the answer 2 times"),
        ("gpt2", [*ASKED, "--rather-than", ANSWER], "no token in which they differ"),
        ("gpt2", ["--prompt", PROMPT, "--answer", ""], "the answer '' has no tokens"),
        ("gpt2", ["--prompt", " ", "--answer", ANSWER], "the prompt is empty"),
        ("gpt2", ["--prompt", "of", "--answer", " of" * 70], "the model takes 64: shorten"),
        ("gpt2", ["--prompt", "Par", "--answer", "is"], "is cut into other tokens: end the prompt"),
        ("gpt2", [*ASKED, "--hops", "-1"], "'-1' is neither a number from 0 on nor 'all'"),
        ("bert", [*ASKED], "BertForSequenceClassification is not a language model"),
        ("timm", ["--prompt", PROMPT, "--generate", "2"], "is not a language model"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(checkpoints, run, model, arguments, said):
    status, _, err = run("explain", checkpoints / model, *arguments)
    assert status > 0
    assert said in " ".join(err.split())
