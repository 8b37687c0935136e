"""Modules that FSDP2 shards are explained as whole ones are, and train as they would without."""

import pytest
import torch

from lightning_callbacks import RelevanceDataset
from tests.attr.subjects import assert_close
from tests.lightning_callbacks.explained import images
from tests.lightning_callbacks.isolation.sharded_trainings import (
    METHODS,
    die,
    explain,
    explain_in_vain,
    refuse,
    train,
    vit,
)
from tests.lightning_callbacks.isolation.test_bit_identity import assert_same
from tests.lightning_callbacks.processes import Failed, alone, needs_fork

pytestmark = needs_fork


def outcome(folder, watched, rank):
    return torch.load(folder / f"{watched}_{rank}.pt", weights_only=True)


@pytest.mark.parametrize(
    ("policy", "precision"),
    [
        pytest.param("none", "32-true", marks=pytest.mark.slow),
        pytest.param("bf16", "32-true", marks=pytest.mark.slow),
        pytest.param("none", "bf16-mixed", marks=pytest.mark.slow),
        pytest.param("none", "bf16-true", marks=pytest.mark.slow),
    ],
)
def test_training_is_bit_identical_and_maps_are_those_of_a_whole_module(
    tmp_path, policy, precision
):
    alone(train, tmp_path, policy, precision)
    for rank in (0, 1):
        watched, plain = (outcome(tmp_path, run, rank) for run in (True, False))
        maps = watched.pop("maps")
        assert not plain.pop("maps")
        assert_same(watched, plain)
    maps = outcome(tmp_path, True, 0)["maps"]
    assert maps.keys() - {"weights"} == METHODS.keys() - {"breaks", "breaks backward"}
    assert not outcome(tmp_path, True, 1)["maps"], "the first process explains alone"
    if (policy, precision) != ("none", "32-true"):
        return
    model = vit().eval()
    model.load_state_dict(maps.pop("weights"))
    for name, (inputs, target, attributions) in maps.items():
        expected = METHODS[name](model).attribute(inputs, target=target)
        assert torch.equal(attributions, expected.detach().float()), name


@pytest.mark.slow
def test_a_writer(tmp_path):
    alone(explain, tmp_path, tmp_path / "out")
    whole = vit().eval()
    data = RelevanceDataset(tmp_path / "out")
    assert len(data) == 5
    for sample in data:
        pixels = images()[sample.sample_id][0][None].float()
        expected = METHODS["chefer"](whole).attribute(pixels, target=sample.target)
        # Linear algebra of one row may round otherwise than that of several.
        assert_close(sample.attributions["input_0"], expected[0].float(), relative=1e-5)


@pytest.mark.slow
def test_a_prediction_that_fails_leaves_the_module_sharded(tmp_path):
    alone(explain_in_vain, tmp_path)


def test_tensor_parallelism_is_refused_by_name(tmp_path):
    with pytest.raises(Failed, match="splits the parameters by tensor parallelism"):
        alone(refuse, tmp_path)


@pytest.mark.slow
def test_a_process_that_dies_while_it_explains_keeps_no_one_waiting(tmp_path):
    with pytest.raises(Failed, match=r"SIGKILL|Connection (closed|reset) by peer|has died"):
        alone(die, tmp_path, limit_s=90)
