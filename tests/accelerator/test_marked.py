"""What needs a GPU runs on an emulated one where there is none.

In a process of its own: PyTorch decides once which accelerator it has, and after that autograd runs
in threads, with which the processes that other tests fork would come to a standstill.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.accelerator import emulated

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not emulated.AVAILABLE, reason="PyTorch 2.9 needs C++ for it")
def test_on_the_emulated_accelerator():
    options = ["--emulated", "-q", "-p", "no:cacheprovider"]
    files = [
        str(p)
        for p in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in p.read_text(encoding="utf-8")
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    assert " passed" in run.stdout
