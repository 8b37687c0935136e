"""Lightning callbacks that explain a model while it trains, and data sets.

They work with ``pytorch_lightning`` and with ``lightning.pytorch`` alike.
"""

from lightning_callbacks.attribution_monitor import AttributionMonitor
from lightning_callbacks.data_sets import ExplainedSample, RelevanceDataset
from lightning_callbacks.explainer_module import ExplainerModule, LightningExplainerModule
from lightning_callbacks.relevance_writer import RelevanceWriter

__all__ = [
    "AttributionMonitor",
    "ExplainedSample",
    "ExplainerModule",
    "LightningExplainerModule",
    "RelevanceDataset",
    "RelevanceWriter",
]
