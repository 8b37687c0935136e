import pytest
import torch

from captum_transformer.visualization import scale_map, smooth_patches, to_map
from captum_transformer.visualization.maps import scaled_map


def patchwise(values, height, width):
    return values.repeat_interleave(height, 0).repeat_interleave(width, 1)


def test_sum_over_channels_keeps_the_total():
    attribution = torch.randn(3, 5, 4)
    torch.testing.assert_close(to_map(attribution).sum(), attribution.sum())


def test_mean_over_channels():
    attribution = torch.randn(3, 5, 4)
    torch.testing.assert_close(to_map(attribution, channels="mean"), attribution.mean(0))


def test_each_pixel_shows_the_sum_of_its_patch():
    attribution = torch.randn(3, 6, 8)
    sums = attribution.sum(0).unflatten(1, (2, 4)).unflatten(0, (3, 2)).sum((1, 3))
    torch.testing.assert_close(to_map(attribution, grid=(3, 2)), patchwise(sums, 2, 4))
    scaled = scaled_map(attribution, (6, 8), grid=(3, 2), scale=100.0)
    torch.testing.assert_close(100 * scaled.values, patchwise(sums, 2, 4))
    with pytest.raises(ValueError, match="6 x 8 pixels can't be cut into 4 x 2"):
        to_map(attribution, grid=(4, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_map_is_detached_float32(dtype):
    values = to_map(torch.ones(3, 2, 2, dtype=dtype, requires_grad=True))
    assert values.dtype == torch.float32
    assert not values.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_without_colour_are_refused(bad):
    with pytest.raises(ValueError, match="1 of the attribution's 12 values are NaN or infinite"):
        to_map(torch.tensor([bad] + [0.0] * 11).reshape(3, 2, 2))


def test_a_batch_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*one sample at a time"):
        to_map(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 5), (1, 3)])
def test_smoothing_finds_the_patches_and_is_bilinear(height, width):
    grid = torch.rand(3, 4)
    values = patchwise(grid, height, width)
    expected = torch.nn.functional.interpolate(
        grid[None, None], values.shape, mode="bilinear", align_corners=False
    )[0, 0]
    torch.testing.assert_close(smooth_patches(values), expected)


def test_smoothing_leaves_pixelwise_maps_alone():
    values = torch.rand(7, 8)
    assert smooth_patches(values) is values


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_smoothing_a_constant_map(value):
    torch.testing.assert_close(smooth_patches(torch.full((6, 4), value)), torch.full((6, 4), value))


def test_smoothing_works_on_a_view():
    values = patchwise(torch.rand(2, 2), 4, 4)[None].expand(3, -1, -1)
    torch.testing.assert_close(smooth_patches(values[1]), smooth_patches(values[1].clone()))


@pytest.mark.parametrize(
    ("sign", "expected", "signed"),
    [
        ("auto", [-0.5, 0, 1], True),
        ("signed", [-0.5, 0, 1], True),
        ("positive", [0, 0, 1], False),
        ("absolute", [0.5, 0, 1], False),
    ],
)
def test_signs(sign, expected, signed):
    scaled = scale_map(torch.tensor([-2.0, 0.0, 4.0]), sign=sign)
    assert scaled.values.tolist() == expected
    assert scaled.scale == 4
    assert scaled.signed is signed


def test_auto_takes_a_map_without_negative_values_as_positive():
    assert not scale_map(torch.tensor([0.0, 1.0])).signed


def test_fixed_scale_clips():
    scaled = scale_map(torch.tensor([-3.0, 0.5, 3.0]), scale=2.0)
    assert scaled.values.tolist() == [-1, 0.25, 1]


def test_the_quantile_ignores_outliers_but_not_a_sparse_map():
    outlier = torch.ones(1000)
    outlier[0] = 1e6
    assert scale_map(outlier).scale == 1
    sparse = torch.zeros(1000)
    sparse[0] = 5
    assert scale_map(sparse).scale == 5


@pytest.mark.parametrize("scale", [None, 1.0])
def test_a_map_of_zeros_stays_finite(scale):
    scaled = scale_map(torch.zeros(4, 4), scale=scale)
    assert scaled.values.eq(0).all()


@pytest.mark.parametrize(
    "options", [{"sign": "plus"}, {"scale": 0.0}, {"scale": float("nan")}, {"quantile": 0.0}]
)
def test_options_without_meaning_are_refused(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=name):
        scale_map(torch.ones(2), **options)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_patch_map_is_enlarged_to_the_image(smooth):
    grid = torch.rand(2, 3)
    pixels = patchwise(grid, 4, 4)
    small = scaled_map(grid, (8, 12), smooth=smooth)
    large = scaled_map(pixels, (8, 12), smooth=smooth)
    torch.testing.assert_close(small.values, large.values)


def test_a_map_of_any_size_covers_the_image():
    values = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    found = scaled_map(values, (8, 10), quantile=1.0).values
    assert (found[:3, :3] == 1).all()
    assert (found[5:, 7:] == 0.5).all()
    assert float(found.sum()) == 9 + 0.5 * 9
    finer = torch.arange(64.0).view(8, 8)
    means = scaled_map(finer, (4, 2), quantile=1.0).values * 57.5
    torch.testing.assert_close(means, finer.view(4, 2, 2, 4).mean((1, 3)))
