"""Loops show their progress if asked to, with the same results."""

import re

import pytest
import timm
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from captum_transformer import AttnLRP, BiLRP, LayerRelevance, LeGrad, RelevancePatching


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, num_classes=3, depth=2).eval()


@pytest.fixture(scope="module")
def embedding():
    return timm.create_model("test_vit", img_size=32, num_classes=0, depth=1, embed_dim=8).eval()


X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ONE_BY_ONE = {"internal_batch_size": 1}
CALLS = {
    "attribute": (3, lambda m, **o: AttnLRP(m).attribute(X, 1, **ONE_BY_ONE, **o)),
    "another method": (3, lambda m, **o: LeGrad(m).attribute(X, 1, **ONE_BY_ONE, **o)),
    "tokens": (3, lambda m, **o: AttnLRP(m).attribute_tokens(X, 1, **ONE_BY_ONE, **o)),
    "targets": (2, lambda m, **o: AttnLRP(m).attribute_targets(X, [0, 1], **o)[1]),
    "targets of samples": (
        6, lambda m, **o: AttnLRP(m).attribute_targets(X, [0, 1], **ONE_BY_ONE, **o)[1]
    ),
    "layers": (3, lambda m, **o: AttnLRP(m).attribute_layers(X, ["norm"], 1, **ONE_BY_ONE, **o)[0]),
    "a layer": (
        2,
        lambda m, **o: LayerRelevance(AttnLRP(m), "norm").attribute(
            X, 1, internal_batch_size=2, **o
        ),
    ),
    "heads": (3, lambda m, **o: AttnLRP(m).attribute_heads(X, 1, **ONE_BY_ONE, **o)[0]),
    "patching": (
        3,
        lambda m, **o: RelevancePatching(m).attribute(X, 1 - X, ["norm"], 1, **ONE_BY_ONE, **o)[0],
    ),
    "positions": (
        3,
        lambda m, **o: AttnLRP(m, positions="separate").attribute_positions(
            X, 1, **ONE_BY_ONE, **o
        ),
    ),
    "account": (3, lambda m, **o: AttnLRP(m).account(X, 1, **ONE_BY_ONE, **o).of("biases")),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_bar_with_a_step_for_each(name, model, capsys):
    steps, call = CALLS[name]
    silent = call(model)
    assert capsys.readouterr().err == ""
    shown = call(model, show_progress=True)
    assert torch.equal(shown, silent)
    said = capsys.readouterr().err
    assert "attribution: 100%" in said
    assert f" {steps}/{steps} " in said


def test_directions_and_generated_tokens(embedding, capsys):
    BiLRP(embedding).attribute(X, X, show_progress=True)
    assert re.search(r"BiLRP attribution: 100%.* 16/16 ", capsys.readouterr().err)
    gpt = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50)).eval()
    ids = torch.tensor([[3, 14, 15, 9, 26]])
    AttnLRP(gpt).attribute_generated(ids[:, :3], ids, show_progress=True)
    assert re.search(r"AttnLRP attribution: 100%.* 2/2 ", capsys.readouterr().err)
