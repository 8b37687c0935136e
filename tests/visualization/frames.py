"""An image to draw, and the pixels that a frame of a figure shows."""

import numpy as np
import torch

IMAGE = torch.rand(3, 16, 24)


def drawn(axes):
    """The pixels that a frame shows."""
    (image,) = axes.images
    return np.asarray(image.get_array())
