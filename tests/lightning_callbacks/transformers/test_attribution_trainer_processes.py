"""Several processes train with the trainer of Transformers: the first explains alone."""

import pytest
import torch

from captum_transformer import GenericAttentionRelevance
from lightning_callbacks import AttributionTrainerCallback
from tests.lightning_callbacks.processes import alone, needs_fork, side_by_side
from tests.lightning_callbacks.transformers.transformers_trainings import (
    Texts,
    bert,
    read,
    steps,
    trainer,
)

pytestmark = [needs_fork, pytest.mark.slow]


def train(rank, folder, watched):
    class Noted(GenericAttentionRelevance):
        def attribute(self, *args, **options):
            (folder / f"explained_by_{rank}").touch()
            return super().attribute(*args, **options)

    callback = AttributionTrainerCallback({"gae": Noted}, num_samples=3, on_error="raise")
    run = trainer(folder, bert(), Texts, [callback] if watched else [], ddp_backend="gloo")
    run.train()
    assert run.args.world_size == 2
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    result = {**run.model.state_dict(), "losses": torch.tensor(losses), "next": torch.rand(3)}
    torch.save(result, folder / f"result_of_{rank}")
    torch.distributed.destroy_process_group()


def train_with_and_without(folder):
    for watched in (True, False):
        (folder / str(watched)).mkdir()
        side_by_side(train, 2, folder / str(watched), watched)


def test_the_first_explains_and_all_train_as_they_would_without(tmp_path):
    alone(train_with_and_without, tmp_path)
    results = [
        [torch.load(tmp_path / str(watched) / f"result_of_{rank}") for rank in (0, 1)]
        for watched in (True, False)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    first, second = results[0]
    assert len(first["losses"]) == 2
    assert torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert not torch.equal(first["classifier.weight"], bert().state_dict()["classifier.weight"])
    assert [path.name for path in (tmp_path / "True").glob("explained_by_*")] == ["explained_by_0"]
    images = read(tmp_path / "True")
    assert steps(images.Images("attribution_sample_2/label/gae")) == [3, 6]
