"""The colour scales have their properties in a colour space that they weren't made in."""

import numpy as np
import pytest

from captum_transformer.visualization import POSITIVE_CMAP, SIGNED_CMAP
from captum_transformer.visualization.colors import ink_on, luminance, paper_colors

# Simulated dichromacy in linear RGB: Viénot, Brettel and Mollon (1999), and for tritanopia Machado,
# Oliveira and Fernandes (2009).
VISION = {
    "any": np.eye(3),
    "protan": np.array(
        [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]
    ),
    "deutan": np.array(
        [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def cielab(rgb, vision="any"):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (linear @ VISION[vision].T).clip(0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    xyz = linear @ to_xyz.T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[:, 0], f[:, 1], f[:, 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def steps(cmap, start, end, vision="any"):
    colors = cielab(cmap(np.linspace(start, end, 33))[:, :3], vision)
    return np.linalg.norm(np.diff(colors, axis=0), axis=1)


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.0), (0.5, 0.0)])
def test_equal_steps_of_a_signed_map_look_equal(start, end):
    size = steps(SIGNED_CMAP, start, end)
    assert size.std() < 0.12 * size.mean()
    # A usual choice is twice as uneven.
    from matplotlib import colormaps

    usual = steps(colormaps["RdBu_r"], start, end)
    assert usual.std() > 2 * size.std() * usual.mean() / size.mean()


def test_lightness_shows_the_size_equally_for_both_signs():
    lightness = cielab(SIGNED_CMAP(np.linspace(0, 1, 255))[:, :3])[:, 0]
    assert (np.diff(lightness[:128]) > 0).all()
    assert (np.diff(lightness[127:]) < 0).all()
    np.testing.assert_allclose(lightness, lightness[::-1], atol=3.5)
    assert lightness[127] > 94
    assert lightness[0] < 50


@pytest.mark.parametrize("vision", VISION)
def test_signs_differ_for_any_colour_vision(vision):
    shares = np.array([0.25, 0.5, 1.0])
    against, speaks_for = (SIGNED_CMAP(0.5 + side * shares / 2)[:, :3] for side in (-1, 1))
    apart = np.linalg.norm(cielab(against, vision) - cielab(speaks_for, vision), axis=1)
    assert (apart > (7, 14, 28)).all()


@pytest.mark.parametrize("vision", VISION)
def test_more_relevance_is_lighter_with_any_colour_vision(vision):
    lightness = cielab(POSITIVE_CMAP(np.linspace(0, 1, 65))[:, :3], vision)[:, 0]
    assert (np.diff(lightness) > 0).all()


def test_zero_has_no_colour():
    (zero,) = paper_colors(np.zeros(1, np.float32))
    assert np.ptp(zero) < 0.01


def test_ink_is_readable_on_every_colour():
    for ground in paper_colors(np.linspace(-1, 1, 201, dtype=np.float32)):
        pair = luminance(ink_on(ground)) + 0.05, luminance(ground) + 0.05
        light, dark = max(pair), min(pair)
        assert light / dark > 3.9
