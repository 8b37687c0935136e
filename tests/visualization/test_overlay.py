import numpy as np
import pytest
import torch

from captum_transformer.visualization import overlay, to_display


def test_a_normalised_image_is_stretched_to_the_full_range():
    image = torch.linspace(-2, 3, 48).reshape(3, 4, 4)
    pixels = to_display(image)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pixels.shape == (4, 4, 3)
    np.testing.assert_array_equal(pixels, to_display(image * 7 - 2))


def test_a_uint8_image_stays_as_it_is():
    image = torch.randint(50, 100, (3, 4, 5), dtype=torch.uint8)
    np.testing.assert_array_equal(to_display(image), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5)])
def test_grey_images(shape):
    pixels = to_display(torch.rand(shape))
    assert pixels.shape == (4, 5, 3)
    assert (pixels[..., :1] == pixels).all()


def test_an_image_of_one_colour_is_grey():
    assert (to_display(torch.full((3, 2, 2), 7.0)) == 128).all()


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 4, 4), (4,)])
def test_tensors_that_are_not_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        to_display(torch.rand(shape))


def test_an_image_with_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        to_display(torch.full((3, 2, 2), float("nan")))


def test_without_relevance_the_image_is_grey_and_recognisable():
    image = torch.rand(3, 6, 6)
    for attribution in (torch.zeros(3, 6, 6), torch.zeros(6, 6)):
        picture = overlay(image, attribution)
        assert picture.dtype == np.uint8
        assert (picture[..., :1] == picture).all()
        luma = to_display(image) @ np.array([0.299, 0.587, 0.114])
        assert np.corrcoef(picture[..., 0].ravel(), luma.ravel())[0, 1] > 0.999


def test_signed_colours():
    attribution = torch.zeros(1, 1, 3)
    attribution[0, 0, 0], attribution[0, 0, 2] = 1, -1
    positive, neutral, negative = overlay(torch.zeros(3, 1, 3), attribution)[0].astype(int)
    assert positive[0] > positive[2] + 50
    assert negative[2] > negative[0] + 50
    assert np.ptp(neutral) == 0


def test_positive_colours_grow_brighter():
    picture = overlay(torch.zeros(1, 1, 64), torch.linspace(0.2, 1, 64)[None])
    luma = picture[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > -1).all()
    assert luma[-1] > luma[0] + 80


def test_maps_on_a_fixed_scale_are_comparable():
    image, attribution = torch.rand(3, 4, 4), torch.rand(4, 4)
    weak, strong = attribution / 10, attribution
    np.testing.assert_array_equal(overlay(image, weak), overlay(image, strong))
    assert (overlay(image, weak, scale=1.0) != overlay(image, strong, scale=1.0)).any()


def test_channels_and_smoothing_are_passed_on():
    image, attribution = torch.rand(3, 8, 8), torch.rand(3, 2, 2)
    large = attribution.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert (overlay(image, large) != overlay(image, large, smooth=True)).any()
    np.testing.assert_array_equal(
        overlay(image, large, smooth=True), overlay(image, attribution, smooth=True)
    )


def test_nothing_is_written_into_the_arguments():
    image, attribution = torch.rand(3, 4, 4), torch.randn(3, 4, 4)
    before = image.clone(), attribution.clone()
    overlay(image, attribution, sign="positive", smooth=True)
    assert torch.equal(image, before[0])
    assert torch.equal(attribution, before[1])
