"""One name for the classes of both Lightning packages.

``pytorch_lightning`` and ``lightning.pytorch`` are the same code under two names, so their classes
are different. Callbacks and exceptions here inherit from the classes of both packages, so they
work with either. Modules exist once for each package; if one package is missing, both are the
other's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning import Callback, LightningModule
    from pytorch_lightning import LightningModule as OtherLightningModule
    from pytorch_lightning.callbacks import BasePredictionWriter
else:

    def _is_installed(package: str) -> bool:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            # Only the package itself may be missing: errors of a broken installation are raised.
            if error.name not in (package, package.partition(".")[0]):
                raise
            return False
        return True

    _INSTALLED = [
        name for name in ("pytorch_lightning", "lightning.pytorch") if _is_installed(name)
    ]

    def _joined(module: str, name: str) -> type[Any]:
        bases = [getattr(import_module(package + module), name) for package in _INSTALLED]
        return type(name, tuple(bases), {"__module__": __name__, "__doc__": bases[0].__doc__})

    if _INSTALLED:
        BasePredictionWriter = _joined(".callbacks", "BasePredictionWriter")
        Callback = _joined("", "Callback")
        MisconfigurationException = _joined(".utilities.exceptions", "MisconfigurationException")
        # A module can't inherit from both: Lightning would take the methods of one for overrides
        # of the other's.
        LightningModule, OtherLightningModule = (
            import_module(package).LightningModule for package in (_INSTALLED * 2)[:2]
        )
    else:

        class MisconfigurationException(Exception):  # noqa: N818 - it has Lightning's name
            """A replacement for Lightning's class, for the callback of another trainer."""

        def __getattr__(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise ModuleNotFoundError(
                f"{name} needs Lightning, and neither `pytorch_lightning` nor `lightning` is "
                "installed. Install one: pip install pytorch-lightning"
            )


__all__ = [
    "BasePredictionWriter",
    "Callback",
    "LightningModule",
    "MisconfigurationException",
    "OtherLightningModule",
]
