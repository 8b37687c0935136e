"""Explains answers of multimodal models: which image regions, sounds and words cause a word."""

from captum_transformer.chat.answer import ExplainedAnswer
from captum_transformer.chat.explainer import ChatExplainer

__all__ = ["ChatExplainer", "ExplainedAnswer"]
