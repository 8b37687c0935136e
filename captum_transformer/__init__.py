"""Attribution methods for Transformers as a Captum plugin, on unmodified models."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_transformer.account import Account
    from captum_transformer.attr import (
        GIM,
        AttentionGradCam,
        AttentionRollout,
        AttnLRP,
        BiLRP,
        ConservativeLRP,
        FullGradPlus,
        GenericAttentionRelevance,
        LayerRelevance,
        LeGrad,
        LibraGrad,
        PairRelevance,
        PartialLRP,
        RawAttention,
        RelevancePatching,
        TransformerAttribution,
        TransformerMethod,
    )
    from captum_transformer.calling import Contrast
    from captum_transformer.captured import Captured, load_captured
    from captum_transformer.description import Description, describe

__version__ = "0.1.0"

__all__ = [
    "GIM",
    "Account",
    "AttentionGradCam",
    "AttentionRollout",
    "AttnLRP",
    "BiLRP",
    "Captured",
    "ConservativeLRP",
    "Contrast",
    "Description",
    "FullGradPlus",
    "GenericAttentionRelevance",
    "LayerRelevance",
    "LeGrad",
    "LibraGrad",
    "PairRelevance",
    "PartialLRP",
    "RawAttention",
    "RelevancePatching",
    "TransformerAttribution",
    "TransformerMethod",
    "describe",
    "load_captured",
]

# Public names that are not in `attr`.
_ELSEWHERE = {
    "Account": "account",
    "Captured": "captured",
    "Contrast": "calling",
    "Description": "description",
    "describe": "description",
    "load_captured": "captured",
}


def __getattr__(name: str) -> Any:
    # Imported at first use, so that the command line's --help doesn't wait for PyTorch.
    if name in __all__:
        found = getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'attr')}"), name)
        globals()[name] = found
        return found
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
