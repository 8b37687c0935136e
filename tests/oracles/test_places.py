"""Maps are at the right places: in shifted windows, after merging, on images of any shape."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import timm
import torch
from timm.models.hiera import Hiera
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn
from torchvision import models as torchvision_models

from benchmarks.model_matrix.family import drawn, with_random_weights
from captum_transformer import AttentionRollout, GenericAttentionRelevance

SWIN = {"patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
TORCHVISION = {name: [n, n] for name, n in (("patch_size", 4), ("window_size", 4))}


class Family(NamedTuple):
    """A model that keeps a grid of tokens.

    Attributes:
        make: the model.
        image: rows and columns of pixels.
        grid: rows and columns of tokens at the end.
        channels: which axis of the tokens at the end are the features.
        local: whether all attention is within windows.
        gated: whether all of the image acts on all of it, by squeeze-and-excitation.
    """

    make: Callable[[], nn.Module]
    image: tuple[int, int]
    grid: tuple[int, int]
    channels: int = -1
    local: bool = False
    gated: bool = False


def torchvision_swin(**options):
    model = torchvision_models.SwinTransformer(
        **TORCHVISION, embed_dim=8, depths=[2, 2], num_heads=[2, 2], **options
    )
    model.forward_features = lambda images: model.norm(model.features(images))
    return model


def torchvision_swin_v2():
    swin = torchvision_models.swin_transformer
    return torchvision_swin(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)


FAMILIES = {
    "Swin": Family(
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=(64, 96), **SWIN),
        (64, 96),
        (8, 12),
        local=True,
    ),
    "SwinV2": Family(
        lambda: timm.create_model("swinv2_tiny_window8_256", img_size=(96, 64), **SWIN),
        (96, 64),
        (12, 8),
        local=True,
    ),
    "Swin of torchvision": Family(torchvision_swin, (64, 96), (8, 12), local=True),
    "SwinV2 of torchvision": Family(torchvision_swin_v2, (96, 64), (12, 8), local=True),
    "NesT": Family(
        lambda: Nest(img_size=32, embed_dims=8, num_heads=2, depths=1, num_levels=2),
        (32, 32),
        (4, 4),
        channels=1,
    ),
    "Hiera": Family(
        lambda: Hiera(
            img_size=(32, 64),
            embed_dim=8,
            stages=(1, 2),
            q_pool=1,
            mask_unit_size=(2, 2),
            mask_unit_attn=(True, True),
        ),
        (32, 64),
        (4, 8),
        local=True,
    ),
    "MViTv2": Family(
        lambda: MultiScaleVit(
            MultiScaleVitCfg(depths=(1, 2), embed_dim=8, num_heads=1), img_size=64
        ),
        (64, 32),
        (8, 4),
    ),
    "PVT v2": Family(
        lambda: PyramidVisionTransformerV2(
            depths=(1, 1), embed_dims=(8, 16), num_heads=(1, 2), sr_ratios=(2, 1)
        ),
        (64, 96),
        (8, 12),
        channels=1,
    ),
    "Twins": Family(
        lambda: timm.create_model(
            "twins_svt_small",
            img_size=(96, 64),
            depths=(2, 2),
            embed_dims=(8, 16),
            num_heads=(1, 2),
            sr_ratios=(2, 1),
            wss=(4, 4),
            mlp_ratios=(2, 2),
        ),
        (96, 64),
        (12, 8),
    ),
    "MaxViT": Family(
        lambda: timm.create_model(
            "maxvit_pico_rw_256",
            img_size=(64, 96),
            embed_dim=(32, 32),
            depths=(1, 1),
            stem_width=(8, 8),
        ),
        (64, 96),
        (8, 12),
        channels=1,
        gated=True,
    ),
}
PLACES = ((0, 0), (1, 3), (2, 1), (-1, 1), (-1, -1))


class Reading(nn.Module):
    """The score of a class is read from the features of one place."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.model = with_random_weights(family.make())
        self.family = family

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model.forward_features(images)
        tokens = tokens.movedim(self.family.channels, -1).flatten(1, -2)
        return tokens.sum(-1).unflatten(1, self.family.grid)

    def silence_attention(self) -> None:
        """Makes all values zero, so that no token hears of another one by attention."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                *_, layer, kind = name.split(".")
                if layer in ("qkv", "kv"):
                    parameter[-(len(parameter) // (3 if layer == "qkv" else 2)) :] = 0
                    if self.family.gated:
                        parameter.zero_()
                elif layer == "norm_v" or kind == "v_bias":
                    parameter.zero_()


def looked_at(model: Reading, images: Tensor, place: tuple[int, int]) -> Tensor:
    """The pixels that the score of a place depends on, ``(samples, rows, columns)``."""
    images = images.clone().requires_grad_()
    score = model(images)[:, place[0], place[1]].sum()
    (gradient,) = torch.autograd.grad(score, images)
    strength = gradient.abs().sum(1)
    return strength > 1e-12 * strength.amax()


def box(family: Family, place: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels of a place of the last grid."""
    sides = []
    for pixels, cells, cell in zip(family.image, family.grid, place, strict=True):
        size = pixels // cells
        sides.append(slice(cell % cells * size, (cell % cells + 1) * size))
    return sides[0], sides[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_lies_where_the_score_is_read_from(name):
    family = FAMILIES[name]
    model, images = Reading(family), drawn(2, 3, *family.image, seed=1)
    model.silence_attention()
    targets = [(i % family.grid[0], j % family.grid[1]) for i, j in PLACES]
    method = GenericAttentionRelevance(model, with_identity=True)
    maps = method.attribute_targets(images, targets)
    for place, relevance in zip(targets, maps, strict=True):
        relevance = relevance.sum(1)
        rows, columns = box(family, place)
        inside = relevance[:, rows, columns]
        assert (inside.amax((1, 2)) == relevance.amax((1, 2))).all()
        # Overlapping convolutions look at neighbours too, but no further.
        assert (inside.sum((1, 2)) > 0.2 * relevance.sum((1, 2))).all()
        if not family.gated:
            assert not relevance[~looked_at(model, images, place)].any()


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.local])
def test_rollout_stays_within_the_windows_that_the_score_depends_on(name):
    family = FAMILIES[name]
    model, images = Reading(family), drawn(2, 3, *family.image, seed=1)
    targets = [(i % family.grid[0], j % family.grid[1]) for i, j in PLACES]
    for place in targets:
        relevance = AttentionRollout(model).attribute(images, place).sum(1)
        seen = looked_at(model, images, place)
        assert not seen.all()
        reached = relevance > 1e-12 * relevance.amax()
        torch.testing.assert_close(reached, seen)
