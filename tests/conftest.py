"""What all tests share."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

# Before any library reads them: no test may fetch anything, and none may open a window.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--emulated",
        action="store_true",
        help="run what is marked gpu, and nothing else, on an accelerator emulated on the CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all tests are collected: next to nothing of that is garbage
    if config.getoption("numprocesses", 0) and not hasattr(config, "workerinput"):
        return  # it hands the tests out to processes that it starts when it is done here
    import torch

    from tests.accelerator import emulated

    # PyTorch looks for a driver each time that it is asked for devices, unless none is visible.
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # The models here are tiny: handing their work out to threads costs more than doing it.
    torch.set_num_threads(1)
    if config.getoption("--emulated"):
        if not emulated.AVAILABLE:
            raise pytest.UsageError("This PyTorch takes no device that is written in Python.")
        emulated.register()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    chosen = config.getoption("--emulated")
    if chosen:
        others = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("gpu")]
    for item in items:
        if item.get_closest_marker("gpu") and not chosen and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device; --emulated runs it"))
        elif item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000)  # tests are short, and so is the life of what they leave


_files: list[Path] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # What libraries and shared models hold is never looked through again: the collector, which
    # libraries call as well, only has what tests of this file have made.
    if _files[-1:] != [item.path]:
        _files[:] = [item.path]
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where tests run that are marked gpu."""
    import torch

    from tests.accelerator.module import NAME

    return torch.device(NAME if request.config.getoption("--emulated") else "cuda", 0)
