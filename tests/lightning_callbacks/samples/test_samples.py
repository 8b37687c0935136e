from collections import UserDict

import pytest
import torch

from lightning_callbacks.samples.batch import Samples, read_batch

X, Y = torch.randn(4, 3, 8, 8), torch.arange(4)
IDS, MASK = torch.arange(20).reshape(4, 5), torch.ones(4, 5).long()


def forward(x):
    raise AssertionError("reading a batch calls nothing")


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], [X, Y.tolist()], {"image": X, "label": Y}])
def test_usual_forms(batch):
    samples = read_batch(batch, forward)
    assert samples.inputs == (X,)
    assert torch.equal(samples.labels, Y)
    assert samples.additional_forward_args == ()


def test_without_labels():
    assert read_batch(X, forward).labels is None
    assert read_batch({"x": X}, forward).labels is None


def test_several_inputs():
    samples = read_batch(((X, IDS), Y), forward)
    assert [tensor.shape for tensor in samples.inputs] == [X.shape, IDS.shape]


def test_a_mapping_is_matched_with_the_signature():
    def text(input_ids, token_type_ids=None, attention_mask=None, labels=None):
        raise AssertionError

    batch = UserDict(attention_mask=MASK, input_ids=IDS, labels=Y)
    samples = read_batch(batch, text)
    assert samples.inputs == (IDS,)
    assert samples.names == ("input_ids",)
    assert samples.labels is Y
    assert samples.additional_forward_args == ()
    assert samples.additional_forward_kwargs == {"attention_mask": MASK}
    with_labels = read_batch((UserDict(input_ids=IDS), Y), text)
    assert with_labels.additional_forward_kwargs == {}
    assert with_labels.labels is Y


def test_a_forward_that_takes_the_whole_batch_gets_all_but_the_labels():
    def text(**batch):
        return batch

    batch = {"attention_mask": MASK, "pixel_values": X, "input_ids": IDS, "labels": Y, "n": 3}
    samples = read_batch(batch, text)
    assert samples.names == ("pixel_values", "input_ids")
    assert samples.inputs == (X, IDS)
    assert samples.additional_forward_kwargs == {"attention_mask": MASK, "n": 3}
    assert samples.run(text).keys() == batch.keys() - {"labels"}
    moved = samples.select([1]).run(text)
    assert moved["attention_mask"].shape == (1, 5)
    assert moved["n"] == 3


def test_labels_that_forward_needs_are_passed():
    def text(input_ids, labels):
        raise AssertionError

    samples = read_batch({"input_ids": IDS, "labels": Y}, text)
    assert samples.labels is Y
    assert samples.additional_forward_kwargs == {"labels": Y}


def test_inputs_without_a_row_for_each_sample_go_with_the_others():
    def clip(pixel_values, input_ids, attention_mask):
        raise AssertionError

    batch = {"input_ids": IDS[:2], "pixel_values": X, "attention_mask": MASK[:2]}
    samples = read_batch(batch, clip)
    assert samples.names == ("pixel_values",)
    assert set(samples.additional_forward_kwargs) == {"input_ids", "attention_mask"}


def test_the_first_parameter_may_have_a_name_of_its_own():
    samples = read_batch({"pixel_values": X, "labels": Y}, forward)
    assert samples.names == ("x",)
    assert samples.inputs == (X,)

    def positional(*args):
        raise AssertionError

    with pytest.raises(ValueError, match=r"keys \['labels', 'pixel_values'\].*batch_to_inputs"):
        read_batch({"pixel_values": X, "labels": Y}, positional)


def test_the_first_parameter_names_the_input():
    def spectrum(fft):
        raise AssertionError

    assert read_batch({"x": IDS, "fft": X, "y": Y}, spectrum).inputs == (X,)


def test_a_missing_argument_is_named():
    def needs(input_ids, speaker):
        raise AssertionError

    with pytest.raises(ValueError, match=r"needs 'speaker'.*batch_to_inputs"):
        read_batch({"input_ids": IDS}, needs)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((X, Y, Y), "a tuple of"),
        ({"foo": X}, r"the keys \['foo'\]"),
        ("text", "a str"),
        ((["a"], Y), "a list of"),
        (((X, X[:2]), Y), "first dimension"),
    ],
)
def test_other_forms_are_refused_with_advice(batch, said):
    with pytest.raises(ValueError, match=said):
        read_batch(batch, forward)


@pytest.mark.parametrize(
    ("result", "args", "kwargs", "names"),
    [
        ((X, Y), (), {}, None),
        ((X, Y, MASK), (MASK,), {}, None),
        ((X, Y, (MASK, 3)), (MASK, 3), {}, None),
        ((X, Y, None), (), {}, None),
        ((X, Y, {"mask": MASK}), (), {"mask": MASK}, None),
        (({"a": X, "b": IDS}, Y, {"mask": MASK}), (), {"mask": MASK}, ("a", "b")),
    ],
    ids=["labels", "tensor", "tuple", "None", "mapping", "by name"],
)
def test_own_reading(result, args, kwargs, names):
    samples = read_batch(object(), forward, lambda _: result)
    assert samples.additional_forward_args == args
    assert samples.additional_forward_kwargs == kwargs
    assert samples.names == names


def test_own_reading_that_returns_something_else():
    with pytest.raises(ValueError, match="batch_to_inputs must return"):
        read_batch(object(), forward, lambda _: (X,))
    with pytest.raises(ValueError, match="return these by name, too"):
        read_batch(object(), forward, lambda _: ({"x": X}, Y, (MASK,)))


def test_selecting_copies_what_belongs_to_the_samples():
    nested = {"mask": MASK, "table": torch.ones(7), "name": "n"}
    samples = Samples((X,), Y, (nested, 3)).select([2, 0, 2])
    assert len(samples) == 3
    assert torch.equal(samples.inputs[0], X[[2, 0, 2]])
    assert samples.labels.tolist() == [2, 0, 2]
    chosen, number = samples.additional_forward_args
    assert chosen["mask"].shape == (3, 5)
    assert torch.equal(chosen["table"], nested["table"])
    assert chosen["table"] is not nested["table"]
    assert (chosen["name"], number) == ("n", 3)


def test_samples_taken_in_inference_mode_can_have_gradients():
    with torch.inference_mode():
        batch = Samples((torch.ones(2, 3),), None)
        with torch.inference_mode(False):
            copy = batch.select([0, 1]).to("cpu")
    inputs = copy.inputs[0].requires_grad_()
    inputs.sum().backward()
    assert torch.equal(inputs.grad, torch.ones(2, 3))
