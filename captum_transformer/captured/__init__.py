"""Calls of attribution methods as graphs of tensor operations."""

from captum_transformer.captured.archive import load_captured
from captum_transformer.captured.call import Captured
from captum_transformer.captured.repeated import Repeated

__all__ = ["Captured", "Repeated", "load_captured"]
