"""Relevance between sets of tokens: the matrix rules of Chefer et al. (ICCV 2021)."""

from captum_transformer.rules.streams.relevancies import Relevancies
from captum_transformer.rules.streams.update import RelevanceUpdate, RolloutUpdate

__all__ = ["RelevanceUpdate", "Relevancies", "RolloutUpdate"]
