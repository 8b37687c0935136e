"""Attention within shifted windows, and tokens that are merged between stages."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torchvision import models as torchvision_models

from benchmarks.model_matrix.family import CLASSES, drawn, with_random_weights
from tests.oracles.grids import receptive_fields, scattered, windows
from tests.oracles.rows import Layer, Oracle, mean_over

TIMM = {
    "patch_size": 4,
    "embed_dim": 8,
    "depths": (2, 2, 1),
    "num_heads": (2, 2, 2),
    "num_classes": CLASSES,
}


def layer_of_windows(grid, size, shift, **options):
    """Attention within windows, beside a skip."""
    held, tokens = windows(grid, size, shift, **options), grid[0] * grid[1]

    def place(attention):
        of_windows = attention.unflatten(0, (-1, len(held)))
        return scattered(of_windows, held, held, (tokens, tokens))

    return Layer(place, torch.eye(tokens, dtype=torch.float64))


def pads(make):
    """Whether windows may reach over the edge: in older versions SwinV2's may not."""
    try:
        make(**TIMM, window_size=4, img_size=40)
    except RuntimeError:
        return False
    return True


def timm_swin(make, image, **options):
    model = with_random_weights(make(**TIMM, **options, img_size=image))
    grid = (image[0] // 4, image[1] // 4)
    path = []
    for stage in model.layers:
        if not isinstance(stage.downsample, torch.nn.Identity):
            # An odd row or column is merged with zeros, which are nobody's.
            path.append(receptive_fields(grid, 2, 2, beyond=1))
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        path += [
            layer_of_windows(grid, block.window_size, block.shift_size) for block in stage.blocks
        ]
    return model, path, grid


@pytest.mark.parametrize(
    ("image", "options"),
    [
        ((64, 32), {"window_size": (4, 2)}),
        ((64, 48), {"window_size": (4, 4)}),
        ((48, 48), {"window_size": (5, 4)}),
        ((40, 56), {"window_size": (4, 4)}),
    ],
    ids=["oblong windows", "padded in later stages", "padded", "merged with padding"],
)
@pytest.mark.parametrize(
    "make", [SwinTransformer, pytest.param(SwinTransformerV2, marks=pytest.mark.slow)]
)
def test_swin(make, image, options):
    if image != (64, 32) and not pads(make):
        pytest.skip("the windows have to fit in this version of timm")
    model, path, grid = timm_swin(make, image, **options)
    stem = receptive_fields(image, 4, 4)
    oracle = Oracle(model, drawn(2, 3, *image, seed=1), path, mean_over(grid), stem=stem)
    assert any(block.shift_size != (0, 0) for stage in model.layers for block in stage.blocks)
    oracle.check()


def v2(**options):
    swin = torchvision_models.swin_transformer
    return torchvision_models.SwinTransformer(
        **options, block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2
    )


@pytest.mark.parametrize(
    "make", [torchvision_models.SwinTransformer, pytest.param(v2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("image", [(64, 32), (36, 64)], ids=["oblong", "padded"])
def test_swin_of_torchvision(make, image):
    options = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    model = with_random_weights(make(**options, window_size=[4, 4], num_classes=CLASSES))
    grid = (image[0] // 4, image[1] // 4)
    path = []
    for stage in range(2):
        if stage:
            # An odd row or column is merged with zeros, which are nobody's.
            path.append(receptive_fields(grid, 2, 2, beyond=1))
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        for shift in (0, 2):
            # A grid of one window is not shifted; what counts is its padded length.
            shifts = tuple(shift if length > 4 else 0 for length in grid)
            path.append(layer_of_windows(grid, (4, 4), shifts, padded_first=True))
    stem = receptive_fields(image, 4, 4)
    Oracle(model, drawn(2, 3, *image, seed=1), path, mean_over(grid), stem=stem).check()
