from types import SimpleNamespace

import pytest
import torch

from lightning_callbacks.samples.classes import read_output

LOGITS = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])


def test_slots():
    predictions = read_output(LOGITS, torch.tensor([2, 0]))
    assert predictions.classes("label") == [2, 0]
    assert predictions.classes("predicted") == [1, 0]
    assert predictions.classes(2) == [2, 2]


@pytest.mark.parametrize(
    "output",
    [
        SimpleNamespace(logits=LOGITS),
        {"loss": torch.ones(()), "logits": LOGITS},
        (LOGITS, "state"),
        LOGITS.bfloat16(),
    ],
)
def test_forms_of_output(output):
    predictions = read_output(output, None)
    assert predictions.classes("predicted") == [1, 0]
    assert predictions.probabilities.dtype == torch.float32


@pytest.mark.parametrize("output", [torch.ones(2, 3, 4), "text", None, torch.ones(())])
def test_outputs_without_classes_are_refused(output):
    with pytest.raises(ValueError, match="one score per class"):
        read_output(output, None)


def test_several_labels():
    labels = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    predictions = read_output(LOGITS, labels)
    assert predictions.classes("label") == [1, None]
    assert predictions.facts(0, 1).caption("m").endswith("label: 1, 2\npredicted: 1 (0.88)")
    assert predictions.facts(1, 0).label == "none"


def test_soft_labels():
    assert read_output(LOGITS, torch.tensor([[0.2, 0.1, 0.7]] * 2)).classes("label") == [2, 2]


def test_a_label_column_and_an_ignored_label():
    assert read_output(LOGITS, torch.tensor([[2], [-100]])).classes("label") == [2, None]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_single_output(shape):
    predictions = read_output(torch.tensor([-2.0, 2.0]).reshape(shape), torch.tensor([0.0, 1.0]))
    assert predictions.single is (len(shape) == 1)
    assert predictions.classes("label") == predictions.classes("predicted") == [0, 0]
    captions = [predictions.facts(row, 0).caption("m") for row in (0, 1)]
    assert captions[0] == "m → output, p = 0.12\nlabel: 0\npredicted: 0 (0.12)"
    assert captions[1] == "m → output, p = 0.88\nlabel: 1\npredicted: 1 (0.88)"


def test_captions_have_names():
    predictions = read_output(LOGITS, torch.tensor([2, 0]), class_names=["cat", "dog"])
    assert (
        predictions.facts(0, 1).caption("lrp")
        == "lrp → dog, p = 0.67\nlabel: 2\npredicted: dog (0.67)"
    )


def test_own_probabilities():
    predictions = read_output(LOGITS, None, probabilities=torch.sigmoid)
    torch.testing.assert_close(predictions.probabilities, LOGITS.sigmoid())


def test_wrong_slots_are_refused():
    predictions = read_output(LOGITS, None)
    with pytest.raises(ValueError, match="class id 3"):
        predictions.classes(3)
    with pytest.raises(ValueError, match="no labels"):
        predictions.classes("label")
    with pytest.raises(ValueError, match="one value for each of the 3 classes"):
        read_output(LOGITS, torch.ones(2, 5)).classes("label")


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("labels", [[3.25, -1.0], [0.25, 1.0], [7, 0]])
def test_a_regression_has_amounts_and_no_probabilities(shape, labels):
    predictions = read_output(torch.tensor([-2.0, 0.5]).reshape(shape), torch.tensor(labels))
    assert predictions.classes("label") == predictions.classes("predicted") == [0, 0]
    assert predictions.unknown_labels() == []
    expected = [
        f"m → output = {value}\nlabel: {label:g}"
        for value, label in zip((-2, 0.5), labels, strict=True)
    ]
    assert [predictions.facts(row, 0).caption("m") for row in (0, 1)] == expected


def test_a_regression_of_several_outputs():
    labels = torch.tensor([[-1.0, -5.0, -2.5], [12.0, 0.0, float("nan")]])
    predictions = read_output(LOGITS, labels, class_names=["x", "y", "z"])
    assert predictions.classes("label") == [0, None]
    assert predictions.facts(0, 2).caption("m") == "m → z = 1\nlabel: -2.5"
    assert "is_amount" not in predictions.facts(0, 2).columns()


def test_scores_are_not_called_probabilities():
    predictions = read_output(LOGITS, torch.tensor([2, 0]), probabilities=lambda scores: scores)
    assert predictions.classes("label") == [2, 0]
    assert predictions.facts(0, 1).caption("m") == "m → 1 = 2\nlabel: 2"
