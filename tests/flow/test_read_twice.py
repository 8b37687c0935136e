"""Rows whose sums are needed before shares go through them are computed once."""

import timm
import torch

from captum_transformer import AttentionRollout
from captum_transformer.trace import blocks
from captum_transformer.trace.attention import FusedAttention


def _calls(monkeypatch):
    asked = []
    computed = FusedAttention.probabilities

    def probabilities(self, rows):
        asked.append((self.layer, rows))
        return computed(self, rows)

    monkeypatch.setattr(FusedAttention, "probabilities", probabilities)
    return asked


def test_a_map_in_one_block_is_computed_once(monkeypatch):
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    asked = _calls(monkeypatch)
    AttentionRollout(model).attribute(torch.rand(2, 3, 32, 32))
    layers = [layer for layer, _ in asked]
    assert len(layers) == len(set(layers)) == len(model.blocks)


def test_the_result_does_not_depend_on_blocks(monkeypatch):
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    images = torch.rand(2, 3, 32, 32)
    whole = AttentionRollout(model).attribute(images)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", {"cpu": 1})
    monkeypatch.setattr(blocks, "LEAST_ROWS", 2)
    asked = _calls(monkeypatch)
    torch.testing.assert_close(AttentionRollout(model).attribute(images), whole)
    assert len(asked) > 2 * len(model.blocks)
