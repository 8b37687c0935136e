"""The arguments of a model, for all samples at once or for a few at a time."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from captum_transformer.calling.arguments import Arguments, rows_of
from captum_transformer.errors import InvalidInputError


def recorded(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def test_by_position_inputs_come_first() -> None:
    first, second, mask = torch.ones(2, 3), torch.zeros(2, 1), torch.ones(2)
    arguments = Arguments((first, second), (mask, "sum"), {"scale": 3})

    args, kwargs = arguments.call(recorded, arguments.inputs)

    assert args[0] is first
    assert args[1] is second
    assert torch.equal(args[2], mask)
    assert (args[3], kwargs) == ("sum", {"scale": 3})
    assert arguments.samples == 2
    assert arguments.restored([second, first]) == (second, first)


def test_one_tensor_stays_one() -> None:
    arguments = Arguments(torch.ones(2, 3), additional_forward_args=4)

    assert arguments.call(recorded, arguments.inputs)[0][1] == 4
    assert isinstance(arguments.restored(arguments.inputs), Tensor)


def test_by_name_in_the_order_given() -> None:
    words, pixels = torch.ones(2, 3), torch.zeros(2, 1)
    arguments = Arguments({"words": words, "pixels": pixels}, None, {"scale": 3})

    args, kwargs = arguments.call(recorded, arguments.inputs)

    assert (args, list(kwargs)) == ((), ["words", "pixels", "scale"])
    assert list(arguments.restored([pixels, words])) == ["words", "pixels"]
    assert arguments.names(recorded) == ("words", "pixels")


def test_names_of_the_signature() -> None:
    def forward(ids: Tensor, mask: Tensor, *more: Tensor) -> None: ...

    assert Arguments((torch.ones(2),) * 4).names(forward) == ("ids", "mask", "input_2", "input_3")
    assert Arguments(torch.ones(2)).names(dict.fromkeys) == ("iterable",)


def test_each_call_starts_from_what_was_given() -> None:
    cache: list[int] = []
    arguments = Arguments(torch.ones(2), cache)

    def forward(_: Tensor, cache: list[int]) -> int:
        cache.append(1)
        return len(cache)

    assert [arguments.call(forward, arguments.inputs) for _ in range(2)] == [1, 1]
    assert cache == []


class Pair(NamedTuple):
    rows: Tensor
    scale: float


def test_a_few_samples_at_a_time() -> None:
    inputs, mask, table = torch.arange(5.0), torch.arange(5) * 10, torch.arange(4)
    further = {"nested": [(mask, {"deep": mask})], "table": table, "flag": True}
    arguments = Arguments(inputs, mask, further)

    seen = []
    for rows, batch in arguments.batches(2):
        (given, beside), named = batch.call(recorded, batch.inputs)
        assert torch.equal(given, inputs[rows])
        assert torch.equal(beside, mask[rows])
        assert torch.equal(named["nested"][0][0], mask[rows])
        assert torch.equal(named["nested"][0][1]["deep"], mask[rows])
        assert torch.equal(named["table"], table)  # four rows are not those of five samples
        assert named["flag"] is True
        seen.append(given)
    assert torch.equal(torch.cat(seen), inputs)
    assert len(seen) == arguments.count(2) == 3
    for all_at_once in (None, 5, 9):
        assert [batch for _, batch in arguments.batches(all_at_once)] == [arguments]
        assert arguments.count(all_at_once) == 1


def test_tensors_in_objects_are_not_divided() -> None:
    with pytest.raises(InvalidInputError, match="a Pair that holds tensors of all 5 samples"):
        rows_of(Pair(torch.ones(5), 2.0), slice(0, 2), 5)
    other = Pair(torch.ones(4), 2.0)
    assert rows_of(other, slice(0, 2), 5) is other


def test_a_batch_of_no_samples() -> None:
    with pytest.raises(InvalidInputError, match="`internal_batch_size` must be at least 1, got 0"):
        next(Arguments(torch.ones(2)).batches(0))


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs", "said"),
    [
        ((), None, None, "got an empty tuple"),
        ({}, None, None, "got an empty dict"),
        ([torch.ones(2)], None, None, "got a list"),
        (None, None, None, "got a NoneType"),
        ((torch.ones(2), None), None, None, "got a NoneType at 1"),
        ({"x": 3}, None, None, "got a int at 'x'"),
        ({1: torch.ones(2)}, None, None, r"must be argument names, got \[1\]"),
        (torch.ones(2, dtype=torch.bool), None, None, "dtype torch.bool can't be explained"),
        (torch.ones(2, dtype=torch.complex64), None, None, "dtype torch.complex64"),
        (torch.tensor(1.0), None, None, r"got shapes \[\(\)\]"),
        (torch.ones(0, 3), None, None, r"got shapes \[\(0, 3\)\]"),
        ((torch.ones(2), torch.ones(3)), None, None, r"got shapes \[\(2,\), \(3,\)\]"),
        ({"x": torch.ones(2)}, None, {"x": 1}, r"\['x'\] are among both"),
        ({"x": torch.ones(2)}, 1, None, "positions are ambiguous"),
        (torch.ones(2), None, [1], "must be a mapping of names to arguments, got a list"),
    ],
)
def test_inputs_that_cannot_be_explained_are_refused(
    inputs: Any, args: Any, kwargs: Any, said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Arguments(inputs, args, kwargs)
