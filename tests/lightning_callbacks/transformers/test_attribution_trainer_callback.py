"""The callback for the trainer of Transformers, in real trainings of tiny models."""

import subprocess
import sys

import pytest
import torch
from captum.attr import Saliency
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from captum_transformer import GenericAttentionRelevance
from captum_transformer.captured import Repeated
from lightning_callbacks import AttributionTrainerCallback
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.transformers.transformers_trainings import (
    METHODS,
    Images,
    Texts,
    bert,
    read,
    steps,
    trainer,
    vit,
)

# Methods that do what they should not, whose changes are put back.
pytestmark = pytest.mark.filterwarnings("ignore:The method .* has changed the training mode")


def of_logits(method):
    """One of Captum's own methods, which take no output objects."""
    return lambda model: method(lambda pixel_values: model.train()(pixel_values).logits)


def test_texts_are_logged_after_each_evaluation(tmp_path):
    callback = AttributionTrainerCallback(METHODS, num_samples=3, on_error="raise")
    trainer(tmp_path, bert(), Texts, [callback]).train()
    events = read(tmp_path)
    images = {
        f"attribution_sample_{i}/{slot}/{method}"
        for i in range(3)
        for slot in ("label", "predicted")
        for method in METHODS
    }
    assert set(events.Tags()["images"]) == images
    assert steps(events.Images("attribution_sample_2/label/gae")) == [3, 6]
    assert steps(events.Scalars("attribution/rank_correlation/gae")) == [6]
    assert steps(events.Scalars("attribution/convergence_delta/lrp")) == [3, 6]


@pytest.mark.slow
def test_captured_explanations_are_the_same(tmp_path, monkeypatch):
    pictures, captured_calls, add = [], [], Repeated.add
    monkeypatch.setattr(Repeated, "add", lambda *given: captured_calls.append(1) or add(*given))
    for captured in (False, True):
        callback = AttributionTrainerCallback(
            {"gae": GenericAttentionRelevance}, num_samples=2, captured=captured, on_error="raise"
        )
        folder = tmp_path / str(captured)
        trainer(folder, vit(), Images, [callback], eval_steps=2).train()
        events = read(folder)
        pictures.append(
            {
                tag: [event.encoded_image_string for event in events.Images(tag)]
                for tag in events.Tags()["images"]
            }
        )
    plain, by_graph = pictures
    assert {len(of_steps) for of_steps in plain.values()} == {3}
    assert by_graph == plain
    assert captured_calls


def test_the_samples_are_the_first_of_the_first_data_set(tmp_path):
    seen = []

    class Recorded(Saliency):
        def attribute(self, inputs, **options):
            seen.append((inputs.detach().clone(), options["target"].tolist()))
            return super().attribute(inputs, **options)

    both = {"b": Images(5, 2), "a": Images(4, 3)}
    callback = AttributionTrainerCallback(
        {"saliency": of_logits(Recorded)}, ("label",), 3, every_n_evaluations=2, on_error="raise"
    )
    trainer(tmp_path, vit(), Images, [callback], both).train()
    expected = [both["b"][index] for index in range(3)]
    torch.testing.assert_close(
        torch.cat([inputs for inputs, _ in seen]),
        torch.stack([item["pixel_values"] for item in expected]),
    )
    assert [label for _, target in seen for label in target] == [int(i["labels"]) for i in expected]
    events = read(tmp_path)
    assert steps(events.Images("attribution_sample_2/label/saliency")) == [3]


def test_scores_are_computed_by_a_function_of_a_part_of_the_model(tmp_path):
    seen = []

    class Recorded(Saliency):
        def attribute(self, inputs, **options):
            seen.append(self.forward_func(inputs))
            return super().attribute(inputs, **options)

    model = vit()
    callback = AttributionTrainerCallback(
        {"saliency": Recorded},
        (0,),
        1,
        model="vit",
        forward=lambda part, pixel_values: part(pixel_values).last_hidden_state[:, 0, :2],
        on_error="raise",
    )
    run = trainer(tmp_path, model, Images, [callback])
    run.evaluate()
    pixels = run.eval_dataset[0]["pixel_values"][None]
    expected = model.vit(pixels).last_hidden_state[:, 0, :2]
    torch.testing.assert_close(seen[0], expected)


def test_two_callbacks_with_the_same_tags_are_refused(tmp_path):
    one, two, other = (
        AttributionTrainerCallback(METHODS, num_samples=1, prefix=prefix)
        for prefix in ("shown", "shown", "also shown")
    )
    refused = r"Two AttributionTrainerCallback .* prefix 'shown'.*its own prefix"
    with pytest.raises(MisconfigurationException, match=refused):
        trainer(tmp_path, bert(), Texts, [one, two]).train()
    trainer(tmp_path, bert(), Texts, [one, other]).train()
    trainer(tmp_path, bert(), Texts, [two]).train()


def test_everything_lies_in_the_run_of_the_trainers_own_callback(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    board = TensorBoardCallback()
    callback = AttributionTrainerCallback(
        {"gae": GenericAttentionRelevance}, num_samples=1, writer=board, on_error="raise"
    )
    tried = trainer(tmp_path, bert(), Texts, [board, callback])
    tried.train()
    events = read(tmp_path)
    assert "attribution_sample_0/label/gae" in events.Tags()["images"]
    assert steps(events.Scalars("eval/loss")) == [3, 6]


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bf16"])
@pytest.mark.parametrize(("model", "data"), [(bert, Texts), (vit, Images)])
@pytest.mark.slow
def test_training_is_bit_identical(tmp_path, model, data, precision):
    class Careless(Saliency):
        def attribute(self, inputs, **options):
            torch.manual_seed(3)
            torch.rand(3)
            return super().attribute(inputs, **options)

    methods = METHODS | ({"careless": of_logits(Careless)} if data is Images else {})

    def trained(callbacks, folder):
        run = trainer(tmp_path / folder, model(), data, callbacks, **precision)
        run.train()
        losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
        return run.model.state_dict(), losses, torch.rand(3)

    callback = AttributionTrainerCallback(methods, num_samples=2, on_error="raise")
    watched = trained([callback], "watched")
    plain = trained([], "plain")
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert not torch.equal(
        watched[0]["classifier.weight"], model().state_dict()["classifier.weight"]
    )


def test_the_comparison_would_notice(tmp_path):
    class Draws(TrainerCallback):
        def on_evaluate(self, *args, **kwargs):
            torch.rand(1)

    def trained(callbacks, folder):
        run = trainer(tmp_path / folder, bert(), Texts, callbacks)
        run.train()
        return run.model.state_dict()

    with pytest.raises(AssertionError):
        torch.testing.assert_close(trained([Draws()], "a"), trained([], "b"), rtol=0, atol=0)


@pytest.mark.slow
def test_layers_have_a_histogram_for_each_method(tmp_path):
    layers = [f"bert.encoder.layer.{i}" for i in range(2)]
    callback = AttributionTrainerCallback(METHODS, num_samples=3, layers=layers, on_error="raise")
    trainer(tmp_path, bert(), Texts, [callback]).train()
    tags = {f"attribution/layers/{layer}/{method}" for layer in layers for method in METHODS}
    assert set(read(tmp_path).Tags()["histograms"]) == tags


def test_unknown_layers_are_refused_as_training_begins(tmp_path):
    callback = AttributionTrainerCallback(METHODS, layers=["encoder.layer.0"])
    with pytest.raises(MisconfigurationException, match=r"Did you mean .*bert\.encoder\.layer\.0"):
        trainer(tmp_path, bert(), Texts, [callback]).train()


@pytest.mark.slow
def test_lightning_need_not_be_installed():
    program = """
import sys
for package in ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"):
    sys.modules[package] = None
from lightning_callbacks import AttributionTrainerCallback
from lightning_callbacks.shared.flavors import MisconfigurationException
try:
    AttributionTrainerCallback({})
except MisconfigurationException as error:
    assert "methods must be" in str(error)
try:
    from lightning_callbacks import AttributionMonitor
except ModuleNotFoundError as error:
    assert "neither `pytorch_lightning` nor `lightning` is installed" in str(error)
    print("as it should be")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.stdout == "as it should be\n", done.stderr


def test_a_failing_method_ends_no_training(tmp_path):
    def failing(model):
        raise ZeroDivisionError("no explanation today")

    methods = {"failing": failing, "gae": GenericAttentionRelevance}
    callback = AttributionTrainerCallback(methods, num_samples=1)
    run = trainer(tmp_path, bert(), Texts, [callback])
    with pytest.warns(UserWarning, match="no explanation today"):
        run.train()
    assert run.state.global_step == 6
    tags = read(tmp_path).Tags()["images"]
    assert {tag.split("/")[-1] for tag in tags} == {"gae"}


def test_split_parameters_are_refused(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = bert()
        mesh = init_device_mesh("cpu", (1,))
        weight = model.classifier.weight
        model.classifier.weight = torch.nn.Parameter(distribute_tensor(weight.data, mesh))
        callback = AttributionTrainerCallback(METHODS)
        with pytest.raises(MisconfigurationException, match=r"classifier\.weight' is a DTensor"):
            callback.on_train_begin(None, None, None, model=model)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "wrong", [{"methods": {}}, {"classes": "label"}, {"num_samples": 0}, {"on_error": "ignore"}]
)
def test_arguments_without_meaning_are_refused(wrong):
    with pytest.raises(MisconfigurationException):
        AttributionTrainerCallback(**({"methods": METHODS} | wrong))
