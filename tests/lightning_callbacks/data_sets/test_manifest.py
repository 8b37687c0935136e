"""Manifests differ exactly if the explanations do."""

import copy
import functools
from dataclasses import dataclass

import pytest
import pytorch_lightning
import torch
from captum.attr import Saliency
from torch import nn

from captum_transformer import AttnLRP
from lightning_callbacks.data_sets.manifest import differences
from tests.lightning_callbacks.explained import explainer, vit
from tests.lightning_callbacks.processes import alone, needs_fork


def first(batch):
    return batch[0], batch[1]


def swapped(batch):
    return batch[1], batch[0]


@dataclass
class Reader:
    key: str = "x"

    def __call__(self, batch):
        return batch[self.key], None


def scaled(factor):
    return lambda batch: (batch[0] * factor, batch[1])


def manifest(model=None, method=AttnLRP, **options):
    return explainer(pytorch_lightning, model or vit(), method, **options).manifest()


READERS = [
    None,
    first,
    swapped,
    Reader(),
    Reader("y"),
    scaled(1),
    scaled(2),
    functools.partial(first, batch=None),
    lambda batch: (batch[0], None),
    lambda batch: (batch[1], None),
    lambda batch, factor=2: (batch[0] * factor, None),
    lambda batch, factor=3: (batch[0] * factor, None),
]


def test_the_manifest_identifies_the_reader_of_batches():
    model = vit()
    found = [manifest(model, batch_to_inputs=reader) for reader in READERS]
    for number, one in enumerate(found):
        for other in found[:number]:
            lines = differences(one, other)
            assert lines
            assert all(line.startswith("batch_to_inputs") for line in lines)
    again = [manifest(model, batch_to_inputs=reader) for reader in READERS]
    assert found == again


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def edits():
    def heads(model):
        model.blocks[0].attn.num_heads *= 2

    def epsilon(model):
        model.blocks[0].norm1.eps = 1e-3

    def activation(model):
        model.blocks[0].mlp.act = nn.ReLU()

    def code(model):
        model.head.__class__ = Doubled

    def hook(model):
        model.head.register_forward_hook(lambda module, args, out: 2 * out)

    def buffer(model):
        model.register_buffer("shift", torch.ones(2), persistent=False)

    def weight(model):
        model.head.bias.data[0] += 1

    return [heads, epsilon, activation, code, hook, buffer, weight]


@pytest.mark.parametrize("edit", edits(), ids=lambda edit: edit.__name__)
def test_the_structure_of_the_model(edit):
    model = vit()
    changed = copy.deepcopy(model)
    edit(changed)
    lines = differences(manifest(model), manifest(changed))
    assert lines
    assert all(line.startswith("model.") for line in lines), lines
    assert len("\n".join(lines)) < 5000


def test_arguments_of_captums_methods():
    model = vit()
    logits = manifest(model, lambda module: Saliency(lambda x: module(x) * 1))
    shares = manifest(model, lambda module: Saliency(lambda x: module(x).softmax(1)))
    assert any("forward_func.code" in line for line in differences(logits, shares))


def two_manifests():
    return [manifest(), manifest(batch_to_inputs=scaled(2))]


@needs_fork
@pytest.mark.slow
def test_another_process_says_the_same():
    # A fork of a process that has another seed for hashes than this one.
    pairs = zip(alone(two_manifests), two_manifests(), strict=True)
    assert [differences(*pair) for pair in pairs] == [[], []]


def test_a_run_before_changes_nothing():
    model = vit()
    before = manifest(model)
    AttnLRP(model).attribute(torch.rand(1, 3, 32, 32, dtype=torch.float64), target=0)
    assert differences(before, manifest(model)) == []
