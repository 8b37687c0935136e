"""Draws attributions of images, texts, sound and video, and logs them to TensorBoard.

Everything here takes plain tensors, so it draws what any attribution method returns. Pictures are
uint8 arrays ``(height, width, 3)``; drawings with axes are Matplotlib figures (`to_array` converts
them to pixels); texts are also available as HTML, Markdown or terminal text.
"""

from captum_transformer.visualization.accounts import account_bars
from captum_transformer.visualization.colors import POSITIVE_CMAP, SIGNED_CMAP
from captum_transformer.visualization.detections import detections
from captum_transformer.visualization.figure import to_array
from captum_transformer.visualization.image_and_text import image_and_text
from captum_transformer.visualization.image_grid import image_grid
from captum_transformer.visualization.maps import (
    MapOptions,
    ScaledMap,
    common_scale,
    scale_map,
    smooth_patches,
    to_map,
)
from captum_transformer.visualization.matrix import map_grid, token_matrix
from captum_transformer.visualization.overlay import overlay, to_display
from captum_transformer.visualization.panel import panel
from captum_transformer.visualization.places import Places, places_of
from captum_transformer.visualization.spectrogram import spectrogram
from captum_transformer.visualization.tensorboard import log_attributions, log_token_attributions
from captum_transformer.visualization.ties import patch_ties, word_ties
from captum_transformer.visualization.ties_html import word_ties_html
from captum_transformer.visualization.token_ansi import token_ansi
from captum_transformer.visualization.token_html import html_page, token_html
from captum_transformer.visualization.token_scale import TokenOptions
from captum_transformer.visualization.token_strip import token_strip
from captum_transformer.visualization.tokens import token_table
from captum_transformer.visualization.video_frames import video_frames
from captum_transformer.visualization.words import decode_with_offsets, merge_words

__all__ = [
    "POSITIVE_CMAP",
    "SIGNED_CMAP",
    "MapOptions",
    "Places",
    "ScaledMap",
    "TokenOptions",
    "account_bars",
    "common_scale",
    "decode_with_offsets",
    "detections",
    "html_page",
    "image_and_text",
    "image_grid",
    "log_attributions",
    "log_token_attributions",
    "map_grid",
    "merge_words",
    "overlay",
    "panel",
    "patch_ties",
    "places_of",
    "scale_map",
    "smooth_patches",
    "spectrogram",
    "to_array",
    "to_display",
    "to_map",
    "token_ansi",
    "token_html",
    "token_matrix",
    "token_strip",
    "token_table",
    "video_frames",
    "word_ties",
    "word_ties_html",
]
