"""Attention whose rows don't sum up to one."""

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers

from benchmarks.model_matrix.family import CLASSES, drawn, tokens, with_random_weights
from tests.oracles.grids import receptive_fields
from tests.oracles.rows import Layer, Oracle, written_out

IMAGE = (32, 48)
PATCHES = 24


def test_talking_heads_of_cait():
    """Heads are mixed behind the softmax; then class tokens attend to all, and only they do."""
    model = with_random_weights(
        timm.create_model(
            "cait_xxs24_224",
            img_size=IMAGE,
            patch_size=8,
            embed_dim=16,
            depth=3,
            num_heads=2,
            num_classes=CLASSES,
        )
    )
    images = drawn(2, 3, *IMAGE, seed=1)
    layers = [*model.blocks, *model.blocks_token_only]

    def record():
        maps = []
        hooks = [
            layer.attn.attn_drop.register_forward_hook(lambda _, __, given: maps.append(given))
            for layer in layers
        ]
        with written_out(model):
            output = model(images)
        for hook in hooks:
            hook.remove()
        return maps, output

    # The class token is the first of all tokens from the start, but nothing moves it until then.
    rows = torch.eye(1 + PATCHES, dtype=torch.float64)

    def among_patches(attention):
        return F.pad(attention, (1, 0, 1, 0))

    def of_class_token(attention):
        return F.pad(attention, (0, 0, 0, PATCHES))

    path = [Layer(among_patches, rows)] * 3 + [Layer(of_class_token, rows)] * 2
    stem = receptive_fields(IMAGE, 8, 8)
    oracle = Oracle(model, images, path, rows[0], 1, stem, record=record)
    mixed = record()[0][0].sum(-1)
    assert (mixed - 1).abs().amin() > 1e-3
    oracle.check()


@pytest.mark.skipif(not hasattr(transformers, "GptOssConfig"), reason="needs newer Transformers")
def test_sinks_of_gpt_oss():
    """Part of the attention goes to a learned score behind the keys, and is lost."""
    config = transformers.GptOssConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=4,
        attn_implementation="eager",
        experts_implementation="eager",  # the grouped one has no float64
    )
    model = with_random_weights(transformers.GptOssForCausalLM(config))
    rows = torch.eye(7, dtype=torch.float64)
    Oracle(
        model,
        tokens(7),
        [Layer(lambda with_sink: with_sink[..., :7], rows)] * 3,
        rows[5],
        score=lambda output: output.logits[:, 5],
    ).check([[3, 17], [20, 5]])
