"""A run that is killed loses nothing, and the next one writes nothing twice."""

import sys

import pytest
import torch

from benchmarks.kill_and_resume import SAMPLES, kill_and_resume, largest_error
from lightning_callbacks import RelevanceDataset


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and finds processes in /proc")
def test_samples_are_written_once_by_runs_that_are_killed(tmp_path):
    runs = kill_and_resume(tmp_path)
    assert [run.killed for run in runs] == [
        "all processes",
        "all processes",
        "one process",
        "nothing",
    ]
    done = [run.done for run in runs]
    assert 0 < done[0] < done[1] < done[2] < done[3] == SAMPLES
    assert [run.twice for run in runs] == [0, 0, 0, 0]
    assert sum(run.unfinished for run in runs[:3]) > 0
    assert runs[3].unfinished == 0
    assert RelevanceDataset(tmp_path).sample_ids.tolist() == list(range(SAMPLES))
    assert torch.tensor(largest_error(tmp_path)) < 1e-5
