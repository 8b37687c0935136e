"""Which scores a target selects, and which part of a target belongs to which samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_transformer import Contrast
from captum_transformer.calling.target import (
    Chosen,
    as_contrast,
    main_output,
    selected_scores,
    target_of,
)
from captum_transformer.errors import AmbiguousOutputError, InvalidTargetError


def numbered(*shape: int) -> Tensor:
    """Scores that are all different."""
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


FORMS: dict[str, tuple[tuple[int, ...], Any, Callable[[Tensor], Tensor]]] = {
    "one class": ((3, 5), 2, lambda s: s[:, 2]),
    "from the end": ((3, 5), -1, lambda s: s[:, -1]),
    "of NumPy": ((3, 5), np.int64(4), lambda s: s[:, 4]),
    "a tensor with one class": ((3, 5), torch.tensor(4), lambda s: s[:, 4]),
    "a class for each": ((3, 5), [4, 0, 2], lambda s: s[[0, 1, 2], [4, 0, 2]]),
    "a class of NumPy for each": (
        (3, 5),
        list(np.array([4, 0, 2])),
        lambda s: s[range(3), [4, 0, 2]],
    ),
    "labels as bytes": (
        (3, 5),
        torch.tensor([4, 0, 2], dtype=torch.uint8),
        lambda s: s[range(3), [4, 0, 2]],
    ),
    "a tensor with a class for each": (
        (3, 5),
        torch.tensor([4, 0, 2]),
        lambda s: s[[0, 1, 2], [4, 0, 2]],
    ),
    "one place": ((3, 4, 5), (1, 2), lambda s: s[:, 1, 2]),
    "one place from the end": ((3, 4, 5), (-1, -2), lambda s: s[:, -1, -2]),
    "a place for each": (
        (3, 4, 5),
        [(1, 2), (0, 0), (3, 4)],
        lambda s: s[[0, 1, 2], [1, 0, 3], [2, 0, 4]],
    ),
    "a pixel": ((2, 3, 4, 5), (2, 3, 4), lambda s: s[:, 2, 3, 4]),
    "no target, no classes": ((3,), None, lambda s: s),
    "no target, one class": ((3, 1), None, lambda s: s[:, 0]),
    # As many classes as samples: one index for all of them is no row of theirs.
    "as many classes as samples": ((3, 3), (1,), lambda s: s[:, 1]),
}
FOR_EACH = [form for form in FORMS if form.endswith("for each")]


@pytest.mark.parametrize("form", FORMS)
def test_scores_that_a_target_selects(form: str) -> None:
    shape, target, expected = FORMS[form]
    scores = numbered(*shape)

    assert torch.equal(selected_scores(scores, target, len(scores)), expected(scores))


@pytest.mark.parametrize("form", FOR_EACH)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 3), slice(2, 3)])
def test_scores_of_some_of_the_samples(form: str, rows: slice) -> None:
    shape, target, expected = FORMS[form]
    scores = numbered(*shape)

    some = selected_scores(scores[rows], target_of(target, rows, len(scores)), len(scores[rows]))

    assert torch.equal(some, expected(scores)[rows])


@pytest.mark.parametrize("target", [1, (1, 2), torch.tensor(1), torch.tensor([1]), None])
def test_a_target_of_all_samples_is_that_of_each(target: Any) -> None:
    assert target_of(target, slice(1, 2), 3) is target


def test_both_sides_of_a_contrast_are_divided() -> None:
    contrast = Contrast([0, 1, 2], rather_than=torch.tensor([3, 4, 5]))

    some = target_of(contrast, slice(1, 3), 3)

    assert some.target == [1, 2]
    assert some.rather_than.tolist() == [4, 5]


def test_a_contrast_for_each_sample_is_one_of_lists() -> None:
    each = as_contrast([Contrast(0, rather_than=1), Contrast((2,), rather_than=3)])

    assert each == Contrast([0, (2,)], rather_than=[1, 3])
    assert as_contrast([0, 1]) is as_contrast([]) is as_contrast(3) is None


@pytest.mark.parametrize(
    ("shape", "target", "said"),
    [
        ((3, 5), 5, "target 5 does not fit the model's output of shape .3, 5."),
        ((3, 5), [0, 1], r"target \[0, 1\] does not fit"),
        ((3, 5), (1, 2), "Give one class index for all samples"),
        ((3, 4, 5), 2, r"leaves \(5,\) values per sample .* Give a tuple of indices"),
        ((3, 5), None, r"leaves \(5,\) values per sample .* Give a target"),
        ((3,), 1, "If it is one score per sample, give no target"),
        ((2, 5), 1, "selects 2 scores, but there are 3 samples"),
        ((3, 5), "cat", "target 'cat' does not fit"),
        ((3, 5), torch.zeros(2, 9), r"target of shape \(2, 9\) does not fit"),
    ],
)
def test_targets_that_do_not_fit(shape: tuple[int, ...], target: Any, said: str) -> None:
    with pytest.raises(InvalidTargetError, match=said):
        selected_scores(numbered(*shape), target, 3)


@pytest.mark.parametrize("form", [*FOR_EACH, "one place", "one place from the end"])
def test_a_target_that_is_a_tensor_of_places(form: str) -> None:
    """The form in which a captured call gets its target."""
    shape, target, expected = FORMS[form]
    scores, sizes = numbered(*shape), []
    of_each = [target] * 3 if isinstance(target, tuple) else target
    chosen = Chosen(torch.as_tensor(np.asarray(of_each)).reshape(3, -1), sizes.append)

    assert torch.equal(selected_scores(scores, chosen, 3), expected(scores))
    assert sizes == [shape[1:]]
    some = target_of(chosen, slice(1, 3), 3)
    assert torch.equal(selected_scores(scores[1:], some, 2), expected(scores)[1:])


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


def test_logits_are_the_main_output() -> None:
    hidden, logits = numbered(3, 7, 2), numbered(3, 5)

    for output in ({"hidden": hidden, "logits": logits}, Answer(hidden, logits)):
        assert main_output(output) is logits
    assert main_output((hidden, logits)) == (hidden, logits)


def test_the_only_tensor_that_a_target_fits() -> None:
    scores, sizes = numbered(3, 5), torch.tensor([1, 2, 3])

    for output in ((scores, sizes), {"scores": scores, "state": numbered(3, 7, 2)}, [None, scores]):
        assert torch.equal(selected_scores(output, 4, 3), scores[:, 4])


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ((numbered(3, 5), numbered(3, 6)), r"\[0\]: \(3, 5\), \[1\]: \(3, 6\); target 1 fits 2"),
        ({"a": torch.ones(3, dtype=torch.int64)}, "dict, in which there is no tensor of scores"),
        (None, "NoneType, in which there is no tensor of scores"),
    ],
)
def test_outputs_that_say_not_what_is_meant(output: Any, said: str) -> None:
    with pytest.raises(AmbiguousOutputError, match=said):
        selected_scores(output, 1, 3)
