"""Explains texts and pictures in one line."""

from captum_transformer.explainers.explained import Explained
from captum_transformer.explainers.explained_image import ExplainedImage
from captum_transformer.explainers.explained_pair import ExplainedPair
from captum_transformer.explainers.explained_text import ExplainedText
from captum_transformer.explainers.image import ImageExplainer
from captum_transformer.explainers.text import TextExplainer

__all__ = [
    "Explained",
    "ExplainedImage",
    "ExplainedPair",
    "ExplainedText",
    "ImageExplainer",
    "TextExplainer",
]
