"""The printed description of a model is right."""

import pytest
import torch
from torch import nn

from captum_transformer import describe
from tests.attr import kinds_of_attention
from tests.attr.subjects import subject
from tests.attr.tiny_models import images, timm_vit
from tests.flow.models import Model
from tests.flow.wirings import ChannelAttention, LinearAttention, Parallel, ProjectedSkip

EMBEDDINGS = torch.randn(2, 6, 8, dtype=torch.float64)


def test_each_attention_call_and_the_addition_behind_it():
    seen = describe(timm_vit(), images(2))
    assert seen.inputs == {"x": (2, 3, 8, 12)}
    assert [call.module for call in seen.attention] == ["blocks.0.attn", "blocks.1.attn"]
    assert [call.layer for call in seen.attention] == [0, 1]
    assert all(call.shape == (2, 2, 7, 7) and call.fused for call in seen.attention)
    assert all(call.queries == call.keys == "x" for call in seen.attention)
    assert [(a.after, a.read_as) for a in seen.additions] == [
        ((0,), "skip and branch"),
        ((1,), "skip and branch"),
    ]
    assert seen.unread == ()


@pytest.mark.parametrize(
    ("model", "read_as"),
    [
        (Model, ["skip and branch"] * 2),
        (Parallel, ["skip and branch", "parallel branches"] * 2),
        (ProjectedSkip, ["projected skip and branch"] * 2),
    ],
)
def test_how_residuals_are_read(model, read_as):
    assert [addition.read_as for addition in describe(model(), EMBEDDINGS).additions] == read_as


def test_attention_among_channels_has_no_layer():
    (call, _) = describe(ChannelAttention(), EMBEDDINGS).attention
    assert call.layer is None
    assert "channels: " in str(describe(ChannelAttention(), EMBEDDINGS))


def test_streams_of_two_modalities():
    given = kinds_of_attention.subject("LXMERT")
    seen = describe(given.model, given.inputs, additional_forward_kwargs=given.named)
    ties = {(call.queries, call.keys) for call in seen.attention}
    assert ("input_ids", "visual_feats+visual_pos") in ties
    assert "input_ids to visual_feats+visual_pos" in str(seen)


def test_operations_that_are_not_read_are_named():
    seen = describe(LinearAttention(), EMBEDDINGS)
    assert seen.attention == ()
    assert "`matmul` on [(2, 8, 6), (2, 6, 8)]" in seen.unread
    text = str(seen)
    assert "not read: `matmul`" in text
    assert text.endswith("no attention was seen")


def test_windows_show_in_the_shapes():
    given = subject("timm Swin")
    seen = describe(given.model, given.inputs)
    assert [call.shape[-2:] for call in seen.attention] == [(16, 16)] * 4


def test_the_model_is_left_alone():
    model = nn.Sequential(timm_vit()).train()
    describe(model, images(1))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
