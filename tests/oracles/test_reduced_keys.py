"""Keys that are made of several tokens each, and tokens that overlapping convolutions merge."""

import timm
import torch
import transformers
from timm.models.pvt_v2 import PyramidVisionTransformerV2

from benchmarks.model_matrix.family import CLASSES, drawn, with_random_weights
from tests.oracles.grids import receptive_fields, scattered, windows
from tests.oracles.rows import Layer, Oracle, mean_over

IMAGE = (64, 96)


def reduced(grid, ratio):
    """Global attention to keys of which each is a square of the grid."""
    tokens = torch.eye(grid[0] * grid[1], dtype=torch.float64)
    squares = receptive_fields(grid, ratio, ratio)
    return Layer(lambda attention: attention @ squares, tokens)


def test_pvt_v2():
    sizes = {"depths": (2, 1, 1), "embed_dims": (8, 16, 16), "num_heads": (1, 2, 2)}
    ratios = (4, 2, 1)
    model = with_random_weights(
        PyramidVisionTransformerV2(**sizes, sr_ratios=ratios, num_classes=CLASSES)
    )
    stem, grid = receptive_fields(IMAGE, 7, 4, 3), (16, 24)
    path = [reduced(grid, 4), reduced(grid, 4)]
    for ratio in ratios[1:]:
        path.append(receptive_fields(grid, 3, 2, 1))
        grid = (grid[0] // 2, grid[1] // 2)
        path.append(reduced(grid, ratio))
    Oracle(model, drawn(2, 3, *IMAGE, seed=1), path, mean_over(grid), stem=stem).check()


def test_segformer():
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[2, 1],
        sr_ratios=[4, 2],
        hidden_sizes=[8, 16],
        num_attention_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        num_labels=CLASSES,
    )
    model = with_random_weights(transformers.SegformerForImageClassification(config))
    stem, grid = receptive_fields(IMAGE, 7, 4, 3), (16, 24)
    path = [reduced(grid, 4), reduced(grid, 4), receptive_fields(grid, 3, 2, 1)]
    path.append(reduced((8, 12), 2))
    Oracle(
        model,
        drawn(2, 3, *IMAGE, seed=1),
        path,
        mean_over((8, 12)),
        stem=stem,
        score=lambda output: output.logits,
    ).check()


def test_twins():
    model = with_random_weights(
        timm.create_model(
            "twins_svt_small",
            img_size=IMAGE,
            depths=(2, 2),
            embed_dims=(8, 16),
            num_heads=(1, 2),
            sr_ratios=(4, 2),
            wss=(4, 5),
            mlp_ratios=(2, 2),
            num_classes=CLASSES,
        )
    )
    stem, grid = receptive_fields(IMAGE, 4, 4), (16, 24)

    def in_groups(grid, size):
        held, tokens = windows(grid, (size, size)), grid[0] * grid[1]
        return Layer(
            lambda attention: scattered(attention, held, held, (tokens, tokens)),
            torch.eye(tokens, dtype=torch.float64),
            heads=2,
        )

    path = [in_groups(grid, 4), reduced(grid, 4), receptive_fields(grid, 2, 2)]
    # The second stage's groups reach over the edge.
    path += [in_groups((8, 12), 5), reduced((8, 12), 2)]
    Oracle(model, drawn(2, 3, *IMAGE, seed=1), path, mean_over((8, 12)), stem=stem).check()
