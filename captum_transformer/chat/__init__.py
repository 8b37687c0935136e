"""Answers of models that see, hear and read: which image regions and words a word is due to."""

from captum_transformer.chat.answer import ExplainedAnswer
from captum_transformer.chat.explainer import ChatExplainer

__all__ = ["ChatExplainer", "ExplainedAnswer"]
