"""Writes pictures and numbers to a trainer's loggers, one module per kind of logger.

Loggers are recognised by their methods, not by their class: each class exists twice, in
``pytorch_lightning`` and in ``lightning.pytorch``.
"""

from lightning_callbacks.loggers.png import PNGWriter
from lightning_callbacks.loggers.publish import Publisher, charts
from lightning_callbacks.loggers.writers import ADAPTERS, image_writers

__all__ = ["ADAPTERS", "PNGWriter", "Publisher", "charts", "image_writers"]
