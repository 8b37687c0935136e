"""The two colour scales, and functions that look up colours.

Both are perceptually uniform, so that equal steps of relevance look equally large, and are
suitable for people with colour-vision deficiencies: lightness shows the strength, and red and blue
can be distinguished, unlike red and green.
"""

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap

from captum_transformer.visualization.canvas import BLACK, WHITE, Color
from captum_transformer.visualization.maps import ScaledMap

# Oklab, https://bottosson.github.io/posts/oklab: from lightness and the two colour axes to the
# cone responses (cubed), and from those to linear sRGB.
_TO_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
# Lightness, chroma and hue in degrees. Both arms are of one length, so neither sign stands out.
_ZERO, _FOR, _AGAINST = (0.97, 0.0, 0.0), (0.52, 0.175, 30.0), (0.52, 0.175, 257.0)


def _oklab(lightness: float, chroma: float, hue: float) -> npt.NDArray[np.float64]:
    angle = np.radians(hue)
    return np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])


def _srgb(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear = ((lab @ _TO_CONES.T) ** 3 @ _TO_RGB.T).clip(0, 1)
    low = 12.92 * linear
    encoded: npt.NDArray[np.float64] = np.where(
        linear <= 0.0031308, low, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return encoded


def _signed(steps: int = 128) -> ListedColormap:
    share = np.linspace(0, 1, steps)[:, None]
    zero, strong, opposed = _oklab(*_ZERO), _oklab(*_FOR), _oklab(*_AGAINST)
    # A straight line through a uniform space has equal steps.
    blue, red = zero + share[::-1] * (opposed - zero), zero + share[1:] * (strong - zero)
    return ListedColormap(_srgb(np.concatenate([blue, red])), name="captum_transformer_signed")


SIGNED_CMAP: Colormap = _signed()
"""Blue is evidence against the class, nearly white is zero, red supports it."""

POSITIVE_CMAP: Colormap = colormaps["inferno"]
"""Black is zero, purple and orange are intermediate, pale yellow is the strongest."""


def overlay_colors(scaled: ScaledMap) -> npt.NDArray[np.float64]:
    """Looks up the colours of a map over an image.

    Args:
        scaled: A map as `scale_map` returns it, of any shape.

    Returns:
        Red, green and blue in [0, 1] for each value, in a last dimension of 3.
    """
    values = scaled.values.cpu().numpy()
    if scaled.signed:
        # Weak values are nearly transparent, so the pale middle of the colour map would only be a
        # haze over the image: leave it out.
        return _rgb(SIGNED_CMAP(0.5 + np.sign(values) * (0.15 + 0.35 * np.abs(values))))
    return _rgb(POSITIVE_CMAP(values))


def paper_colors(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Looks up the colours of values on a white background, such as behind a token.

    Args:
        values: Values in [-1, 1] of any shape, in units of their scale.

    Returns:
        Red, green and blue in [0, 1] for each value, in a last dimension of 3.
    """
    return _rgb(SIGNED_CMAP(0.5 + 0.5 * np.asarray(values)))


def luminance(color: npt.ArrayLike) -> float:
    """Returns the relative luminance of a colour by WCAG, from 0 (black) to 1 (white).

    Args:
        color: Red, green and blue in [0, 1].

    Returns:
        The luminance.

    Example:
        >>> round(luminance((0, 1, 0)), 4)
        0.7152
    """
    encoded = np.asarray(color, dtype=np.float64)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def ink_on(background: npt.ArrayLike) -> Color:
    """Returns white or black, whichever has more contrast on a background.

    Args:
        background: Red, green and blue in [0, 1].

    Returns:
        The colour to write in.
    """
    ground = luminance(background) + 0.05
    return WHITE if 1.05 / ground > ground / (luminance(BLACK) + 0.05) else BLACK


def _rgb(rgba: npt.ArrayLike) -> npt.NDArray[np.float64]:
    rgb: npt.NDArray[np.float64] = np.asarray(rgba, dtype=np.float64)[..., :3]
    return rgb
