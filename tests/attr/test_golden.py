"""Every tensor that the authors' code computes is reproduced on the unmodified models."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from captum_transformer import ConservativeLRP
from tests.attr.golden import CASES, GOLDEN, NOT_REPRODUCED, Golden, load_case
from tests.attr.golden.cases import load_stored


def _runs() -> Iterator[Any]:
    """Quickly, further implementations compute every fourth tensor of a case.

    That all of them give the same is also shown by ``test_kinds_of_attention.py``.
    """
    places: Counter[tuple[str, str]] = Counter()
    for i, golden in enumerate(GOLDEN):
        for number, attention in enumerate(golden.attentions):
            left_out = number > 0 and places[golden.case, attention] % 4 > 0
            places[golden.case, attention] += 1
            marks = pytest.mark.slow if left_out else ()
            yield pytest.param(golden, attention, id=f"{golden.name}-{attention}-{i}", marks=marks)


@pytest.mark.parametrize(("golden", "attention"), _runs())
def test_reproduces_reference(golden: Golden, attention: str) -> None:
    actual, expected = golden.values(attention)

    assert actual.shape == expected.shape
    assert actual.dtype == torch.float64
    error = float((actual - expected).abs().max())
    assert error <= golden.absolute + golden.tolerance * float(expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_every_expected_tensor_is_compared(case: str) -> None:
    compared = {golden.key for golden in GOLDEN if golden.case == case}

    left_out = {key for name, key in NOT_REPRODUCED if name == case}
    assert compared | left_out == set(load_stored(case).expected)


def test_undefined_maps_of_the_reference_are_zero() -> None:
    for golden in GOLDEN:
        undefined = load_stored(golden.case).expected[golden.key].isnan()
        if undefined.any():
            actual = golden.compute(load_case(golden.case))
            assert actual.isfinite().all()
            assert not actual[undefined].any()


def test_convergence_delta_vanishes_where_relevance_is_conserved() -> None:
    case = load_case("icml22_hf_conservative")
    for target in case.targets:
        _, delta = ConservativeLRP(case.model).attribute(
            case.inputs, target, return_convergence_delta=True
        )
        assert delta.abs().max() < 1e-10
