"""Results as files: what is there is not computed again."""

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.study.bootstrap import Score

Maps = dict[str, Tensor]
Curve = tuple[list[float], list[float]]
SCATTER = "scatter"
"""The name of a curve that is points, not a line."""


class Measured(NamedTuple):
    """What a metric says of a method.

    Attributes:
        scores: By name.
        curves: For plots: a name, and lists of x and y.
    """

    scores: dict[str, Score]
    curves: dict[str, Curve]


class Store:
    """A folder of maps and results, each with the state of what it was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def maps(self, task: str, method: str, state: str, explain: Callable[[], Maps]) -> Maps:
        """A method's maps, and under ``"seconds"`` how long they took."""
        path = self.folder / "maps" / task / f"{_file_name(method)}.pt"
        if path.is_file():
            kept: dict[str, Any] = torch.load(path, weights_only=True)
            if kept["state"] == state:
                return kept["maps"]
        start = time.perf_counter()
        maps = {name: relevance.cpu() for name, relevance in explain().items()}
        maps["seconds"] = torch.tensor(time.perf_counter() - start)
        _write(path, lambda partial: torch.save({"state": state, "maps": maps}, partial))
        return maps

    def result(
        self, task: str, metric: str, method: str, state: str, measure: Callable[[], Measured]
    ) -> Measured:
        """What a metric says of a method."""
        path = self.folder / "results" / task / metric / f"{_file_name(method)}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["state"] == state:
                return _measured(kept)
        measured = measure()
        scores = {name: asdict(score) for name, score in measured.scores.items()}
        content = {"state": state, "method": method, "scores": scores, "curves": measured.curves}
        _write(path, lambda partial: partial.write_text(json.dumps(content), encoding="utf-8"))
        return _measured(json.loads(json.dumps(content)))


def state_of(model: nn.Module, samples: Tensor) -> str:
    """Changes when a weight or a sample does."""
    digest = hashlib.sha256()
    for name, tensor in [*sorted(model.state_dict().items()), ("samples", samples)]:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _measured(kept: dict[str, Any]) -> Measured:
    scores = {name: Score(**score) for name, score in kept["scores"].items()}
    return Measured(scores, {name: (x, y) for name, (x, y) in kept["curves"].items()})


def _file_name(method: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", method).strip("-")


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Under another name first, so that a run that is stopped leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write(partial)
    partial.replace(path)
