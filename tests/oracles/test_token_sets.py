"""Models with one set of tokens, with several ways to read the score and to wire a block."""

import pytest
import timm
import torch
import transformers

from benchmarks.model_matrix.family import CLASSES, drawn, tokens, with_random_weights
from tests.oracles.grids import receptive_fields
from tests.oracles.rows import Layer, Oracle

IMAGE = (32, 48)
PATCHES = 24
PLAIN = {
    "img_size": IMAGE,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "num_classes": CLASSES,
}


def vit(variant, read, prefix, **options):
    model = with_random_weights(timm.create_model(variant, **PLAIN, **options))
    layer = Layer(lambda attention: attention, torch.eye(prefix + PATCHES, dtype=torch.float64))
    images, stem = drawn(2, 3, *IMAGE, seed=1), receptive_fields(IMAGE, 8, 8)
    return Oracle(model, images, [layer] * 3, torch.tensor(read, dtype=torch.float64), prefix, stem)


def test_class_token():
    vit("vit_tiny_patch16_224", [1] + [0] * PATCHES, 1).check()


def test_mean_over_patches():
    # The class token attends and is attended to, but the score is not read from it.
    vit("vit_tiny_patch16_224", [0] + [1 / PATCHES] * PATCHES, 1, global_pool="avg").check()


def test_mean_without_class_token():
    read = [1 / PATCHES] * PATCHES
    vit("vit_tiny_patch16_224", read, 0, global_pool="avg", class_token=False).check()


def test_registers():
    vit("vit_small_patch14_reg4_dinov2", [1] + [0] * (4 + PATCHES), 5).check()


def test_distilled_deit():
    # The mean of two heads: one reads the class token, one the distillation token.
    vit("deit_tiny_distilled_patch16_224", [0.5, 0.5] + [0] * PATCHES, 2).check()


def test_parallel_attention_and_mlp():
    vit("vit_base_patch16_xp_224", [1] + [0] * PATCHES, 1).check()


def test_parallel_attention_layers():
    model = with_random_weights(timm.create_model("vit_small_patch16_18x2_224", **PLAIN))
    # Both layers of a block attend to the same tokens; each counts in full beside one skip.
    together = Layer(
        lambda attention: attention, torch.eye(1 + PATCHES, dtype=torch.float64), calls=2
    )
    images, stem = drawn(2, 3, *IMAGE, seed=1), receptive_fields(IMAGE, 8, 8)
    read = torch.eye(1 + PATCHES, dtype=torch.float64)[0]
    Oracle(model, images, [together] * 3, read, 1, stem).check()


def neox(*, parallel):
    config = transformers.GPTNeoXConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        use_parallel_residual=parallel,
        attn_implementation="sdpa",
    )
    return with_random_weights(transformers.GPTNeoXForCausalLM(config))


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox(parallel):
    layer = Layer(lambda attention: attention, torch.eye(7, dtype=torch.float64))
    Oracle(
        neox(parallel=parallel),
        tokens(7),
        [layer] * 3,
        torch.eye(7, dtype=torch.float64)[4],
        score=lambda output: output.logits[:, 4],
    ).check([[3, 17], [20, 5]])
