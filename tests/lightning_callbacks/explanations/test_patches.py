import pytest
import timm
import torch
from torch import nn

from lightning_callbacks.explanations.patches import patch_grids
from lightning_callbacks.samples.batch import Samples


def vit(img_size=32):
    return timm.create_model("test_vit", patch_size=8, img_size=img_size, num_classes=3).eval()


def of_images(*shape):
    return Samples((torch.rand(2, *shape),), None)


def test_the_patches_of_a_vision_transformer():
    assert patch_grids(vit((32, 48)), of_images(3, 32, 48)) == [(4, 6)]


def test_images_that_the_model_pads_are_not_cut_into_equal_patches():
    def padded(images):
        return model(nn.functional.pad(images, (0, 4, 0, 0)))

    model = vit()
    assert patch_grids(padded, of_images(3, 32, 28)) == [None]


@pytest.mark.parametrize("shape", [(3, 16, 16), (5,)])
def test_models_without_patches_have_no_grid(shape):
    assert patch_grids(nn.Flatten(), of_images(*shape)) == [None]
    assert patch_grids(vit(), of_images(1, 7, 7)) == [None], "it doesn't run"
