"""A training with the trainer of Transformers that is resumed goes on with the same pictures."""

import json
import warnings

import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_callbacks import AttributionTrainerCallback
from tests.lightning_callbacks.transformers.transformers_trainings import (
    METHODS,
    Texts,
    bert,
    read,
    steps,
    trainer,
)

TAG = "attribution_sample_0/label/gae"


def callback(**more):
    return AttributionTrainerCallback(METHODS, num_samples=2, on_error="raise", **more)


def train(folder, callbacks, **more):
    run = trainer(folder, bert(), Texts, callbacks, save_strategy="steps", save_steps=3, **more)
    run.train(resume_from_checkpoint=more.get("max_steps", 6) > 6)
    return run


def saved(folder, step):
    state = json.loads(
        (folder / f"checkpoint-{step}" / "trainer_state.json").read_text(encoding="utf-8")
    )
    return state["stateful_callbacks"]


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.slow
def test_the_count_goes_on_with_the_same_samples(tmp_path, restore):
    # With "restore" the trainer makes callbacks anew that it knows by the names of their classes.
    many = [callback(prefix="attribution", every_n_evaluations=3), callback(prefix="other")]
    train(tmp_path, many)
    (first, second) = (saved(tmp_path, step) for step in (3, 6))
    keys = [f"AttributionTrainerCallback/{prefix}" for prefix in ("attribution", "other")]
    counts = [state[key]["attributes"]["evaluations"] for state in (first, second) for key in keys]
    assert counts == [1, 1, 2, 2]
    samples = [state[key]["attributes"]["samples"] for state in (first, second) for key in keys]
    assert len(set(samples[0].values())) == 2
    assert samples == [samples[0]] * 4
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The samples that are explained")
        resumed = callback(every_n_evaluations=3, writer=SummaryWriter(str(tmp_path / "resumed")))
        train(
            tmp_path,
            [resumed],
            max_steps=12,
            restore_callback_states_from_checkpoint=restore,
        )
    # The fourth evaluation is the second one to explain, after the first.
    assert steps(read(tmp_path / "resumed").Images(TAG)) == [12]
    attributes = saved(tmp_path, 12)[keys[0]]["attributes"]
    assert attributes.pop("scales")
    assert attributes == {"evaluations": 4, "samples": samples[0]}


def test_other_samples_are_noticed(tmp_path):
    train(tmp_path, [callback()])
    with pytest.warns(UserWarning, match="not those of the checkpoint"):
        train(tmp_path, [callback()], max_steps=9, evaluated=Texts(5, 77))


def test_a_training_of_its_own_begins_with_a_picture(tmp_path):
    watcher = callback(every_n_evaluations=2)
    train(tmp_path, [watcher])
    assert steps(read(tmp_path).Images(TAG)) == [3]


def test_what_was_evaluated_before_the_training_is_another_data_set(tmp_path):
    watcher = callback()
    run = trainer(tmp_path, bert(), Texts, [watcher], every_evaluation := Texts(5, 2))
    run.evaluate(Texts(5, 77), metric_key_prefix="test")
    with pytest.warns(UserWarning, match="Other samples are explained than before this training"):
        run.train()
    assert steps(read(tmp_path).Images(TAG)) == [0, 3, 6]
    (first, *_) = watcher._runs.fixed.batches
    expected = [every_evaluation[index]["input_ids"] for index in range(2)]
    assert [ids.tolist() for ids in first.inputs[0]] == [ids.tolist() for ids in expected]
