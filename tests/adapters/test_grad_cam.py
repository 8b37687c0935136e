"""Maps in the form of pytorch-grad-cam, with its call."""

import numpy as np
import pytest
import timm
import torch

from captum_transformer import AttnLRP, TransformerAttribution
from captum_transformer.adapters.grad_cam import TransformerCAM
from captum_transformer.errors import AmbiguousOutputError, InvalidTargetError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=(32, 64), num_classes=5).eval()


X = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def test_a_drop_in_for_their_cams(model):
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import (
        ClassifierOutputSoftmaxTarget,
        ClassifierOutputTarget,
    )

    theirs = package.GradCAM(
        model, [model.blocks[-1].norm1],
        reshape_transform=lambda t: t[:, 1:].unflatten(1, (2, 4)).permute(0, 3, 1, 2),
    )  # fmt: skip
    targets = [ClassifierOutputTarget(3), ClassifierOutputTarget(1)]
    cam = TransformerCAM(model)
    for call in (
        lambda cam: cam(input_tensor=X, targets=targets),
        lambda cam: cam(X, targets=None),
        lambda cam: cam(X, [ClassifierOutputSoftmaxTarget(2)] * 2),
    ):
        expected, maps = call(theirs), call(cam)
        assert (maps.shape, maps.dtype) == (expected.shape, expected.dtype)
        assert maps.min() >= 0
        assert maps.max() <= 1
    photo = X[0].permute(1, 2, 0).numpy()
    assert show_cam_on_image(photo, cam(X)[0], use_rgb=True).shape == (32, 64, 3)


@pytest.mark.parametrize("method", [TransformerAttribution, AttnLRP])
def test_the_positive_part_of_each_patch(model, method):
    maps = TransformerCAM(model, method)(X, [lambda scores: scores[3], lambda scores: scores[1]])
    relevance = method(model).attribute(X, [3, 1]).sum(1)
    patches = relevance.unfold(1, 16, 16).unfold(2, 16, 16).sum((3, 4)).clamp(min=0)
    largest = patches.amax((1, 2), keepdim=True)
    expected = patches / largest.where(largest > 0, 1.0)
    assert expected.max() == 1
    found = maps.reshape(2, 2, 16, 4, 16)
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, :, None, :, None], found.shape),
                               rtol=1e-3, atol=1e-5)  # fmt: skip


def test_without_targets_the_predicted_class(model):
    with torch.no_grad():
        best = model(X).argmax(1).tolist()
    predicted = [lambda scores, number=number: scores[number] for number in best]
    cam = TransformerCAM(model)
    np.testing.assert_array_equal(cam(X), cam(X, predicted))


def test_smoothing_by_augmentation_is_the_same(model):
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Theirs(package.GradCAM):
        """Their loop over augmented images, with the map of each from here."""

        def forward(self, input_tensor, targets, eigen_smooth=False):
            return TransformerCAM(model)(input_tensor, targets)

    targets = [ClassifierOutputTarget(3), ClassifierOutputTarget(1)]
    expected = Theirs(model, [model.blocks[-1].norm1])(X, targets, aug_smooth=True)
    np.testing.assert_allclose(TransformerCAM(model)(X, targets, aug_smooth=True), expected,
                               rtol=1e-4, atol=1e-5)  # fmt: skip


def test_smoothed_maps_are_of_the_class_predicted_for_the_image(model):
    bias = torch.tensor([5.0, 0, 0, 0, 0])

    def mirror(x):
        # Another class for mirrored images.
        return model(x) + bias.where(x[0, 0, 0, 0] == X[0, 0, 0, 0], -bias)

    model.train()
    smoothed = TransformerCAM(mirror)(X[:1], aug_smooth=True)
    assert model.training
    model.eval()
    expected = TransformerCAM(mirror)(X[:1], [lambda scores: scores[0]], aug_smooth=True)
    np.testing.assert_array_equal(smoothed, expected)


def test_arguments_that_do_not_apply_are_refused(model):
    with pytest.raises(ValueError, match="eigen_smooth takes the main component"):
        TransformerCAM(model)(X, eigen_smooth=True)
    with pytest.raises(TypeError, match="Target layers are not passed"):
        TransformerCAM(model, [model.blocks[-1].norm1])
    with pytest.raises(InvalidTargetError, match="2 samples and 1 targets"):
        TransformerCAM(model)(X, [lambda scores: scores[0]])
    with pytest.raises(AmbiguousOutputError, match="one score for each class"):
        TransformerCAM(lambda x: model(x).sum(1))(X)
