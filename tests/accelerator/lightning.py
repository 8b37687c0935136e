"""Trainings on the device that tests marked gpu run on."""

from typing import Any

import torch

from tests.accelerator.module import NAME


def on(pl: Any, device: torch.device, precision: str = "32-true") -> dict[str, Any]:
    """The options of a trainer that runs on a device.

    Args:
        pl: Lightning, by one of its names.
        device: A CUDA device or the emulated one.
        precision: The trainer's.
    """
    if device.type != NAME:
        return {"accelerator": "gpu", "precision": precision}

    class Emulated(pl.accelerators.Accelerator):
        def setup_device(self, device: torch.device) -> None:
            pass

        def teardown(self) -> None:
            pass

        def get_device_stats(self, device: Any) -> dict[str, Any]:
            return {}

        @staticmethod
        def parse_devices(devices: Any) -> int:
            return int(devices)

        @staticmethod
        def get_parallel_devices(devices: int) -> list[torch.device]:
            return [device]

        @staticmethod
        def auto_device_count() -> int:
            return 1

        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def name() -> str:
            return NAME

    strategy = pl.strategies.SingleDeviceStrategy(device, accelerator=Emulated())
    options = {"accelerator": "auto", "strategy": strategy}
    if precision.endswith("-mixed"):
        # Lightning would autocast on CUDA.
        plugin = pl.plugins.precision.MixedPrecision(precision, NAME)
        return {**options, "plugins": [plugin]}
    return {**options, "precision": precision}
