"""Pictures of attributions: overlays, captioned panels, token strips, and their way to TensorBoard.

Everything here takes plain tensors, so it draws what any attribution method returns.
"""

from captum_transformer.visualization.maps import (
    MapOptions,
    ScaledMap,
    scale_map,
    smooth_patches,
    to_map,
)
from captum_transformer.visualization.overlay import overlay, to_display
from captum_transformer.visualization.panel import panel
from captum_transformer.visualization.tensorboard import log_attributions, log_token_attributions
from captum_transformer.visualization.tokens import token_strip, token_table

__all__ = [
    "MapOptions",
    "ScaledMap",
    "log_attributions",
    "log_token_attributions",
    "overlay",
    "panel",
    "scale_map",
    "smooth_patches",
    "to_display",
    "to_map",
    "token_strip",
    "token_table",
]
