"""Callbacks that explain a model during training, and data sets.

The Lightning callbacks work with both ``pytorch_lightning`` and ``lightning.pytorch``;
`AttributionTrainerCallback` is for the ``Trainer`` of Transformers. Each is imported on first
use, so only its own requirements must be installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_callbacks.attribution_monitor import AttributionMonitor
    from lightning_callbacks.attribution_trainer_callback import AttributionTrainerCallback
    from lightning_callbacks.data_sets import ExplainedSample, RelevanceDataset
    from lightning_callbacks.explainer_module import ExplainerModule, LightningExplainerModule
    from lightning_callbacks.explanations.faithfulness import Faithfulness
    from lightning_callbacks.relevance_writer import RelevanceWriter

__all__ = [
    "AttributionMonitor",
    "AttributionTrainerCallback",
    "ExplainedSample",
    "ExplainerModule",
    "Faithfulness",
    "LightningExplainerModule",
    "RelevanceDataset",
    "RelevanceWriter",
]

_MODULES = {
    "AttributionMonitor": "attribution_monitor",
    "AttributionTrainerCallback": "attribution_trainer_callback",
    "ExplainedSample": "data_sets",
    "ExplainerModule": "explainer_module",
    "Faithfulness": "explanations.faithfulness",
    "LightningExplainerModule": "explainer_module",
    "RelevanceDataset": "data_sets",
    "RelevanceWriter": "relevance_writer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
