"""Lightning callbacks that explain a model while it trains.

They work with ``pytorch_lightning`` and with ``lightning.pytorch`` alike.
"""

from lightning_callbacks.attribution_monitor import AttributionMonitor

__all__ = ["AttributionMonitor"]
