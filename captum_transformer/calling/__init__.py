"""How a model is called: its arguments, the target in its output, and its state left intact."""

from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.target import Contrast, Target

__all__ = ["Arguments", "Contrast", "Target"]
