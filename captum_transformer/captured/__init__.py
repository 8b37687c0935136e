"""Calls of attribution methods as graphs of tensor operations."""

from captum_transformer.captured.archive import load_captured
from captum_transformer.captured.call import Captured

__all__ = ["Captured", "load_captured"]
