"""Maps don't depend on how the same function is written: random models in random notations."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_transformer.errors import ExplanationError
from tests.attr.drawn_models import Drawn, inputs
from tests.attr.subjects import METHODS, as_tuple

# The others divide relevance at each addition, and full LRP at each product, as they are written.
COMPARED = (
    "AttentionGradCam",
    "AttentionRollout",
    "AttnLRP",
    "ConservativeLRP",
    "ConservativeLRP, held mean",
    "GIM",
    "GenericAttentionRelevance",
    "LibraGrad",
    "RawAttention",
)
# A notation may be refused for these reasons.
REASONS = "|".join(
    (
        "softmax.* written by hand",
        "divides by an activation of another signal",
        "which of its maps are heads is not known",
        "attention calls side by side",
        "whether it mixes features of each token or tokens is not known",
        "whether it subtracts the mean of each token is not known",
        "it is unknown which of them are weights of tokens",
        "attention maps can't be multiplied to relevance from token to token",
        "Can't tell samples, tokens and features apart",
    )
)
MODELS, QUICK, AT_ONCE = 72, 20, 4


def explained(model: Drawn, method: str) -> tuple[Tensor, ...] | str:
    """The relevance of the inputs, or the reason why there is none."""
    try:
        return as_tuple(METHODS[method](model).attribute(inputs(model), [0, 1]))
    except ExplanationError as error:
        return str(error)


def differences(seed: int, reasons: str = REASONS, **options: Any) -> Iterator[str]:
    """Yields what differs between a model in the plain notation and in a random one.

    Args:
        seed: of the model and of the notation.
        reasons: why the notation may be refused.
        options: parts of the model that are given.
    """
    plain, other = Drawn(seed, **options), Drawn(seed, seed, **options)
    torch.testing.assert_close(other(*inputs(other)), plain(*inputs(plain)))
    for method in COMPARED if seed >= QUICK else COMPARED[seed % 2 :: 2]:
        expected, found = explained(plain, method), explained(other, method)
        if isinstance(expected, str):
            continue
        if isinstance(found, str):
            if not re.search(reasons, found):
                yield f"{method} refuses it: {found}"
            continue
        for one, two in zip(expected, found, strict=True):
            if not torch.allclose(one, two, rtol=1e-6, atol=1e-8 * float(one.abs().max())):
                yield f"{method} differs by {(one - two).abs().max() / one.abs().max():.1e}"


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(start, marks=() if start < QUICK else pytest.mark.slow)
        for start in range(0, MODELS, AT_ONCE)
    ],
)
def test_random_models_in_random_notations(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        found = list(differences(seed))
        assert not found, f"{Drawn(seed).options}: {found}"


# Heads that share keys, and queries that share values, are refused in many notations.
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"heads": "g shared"}, {"read": "pooled heads"}])
def test_heads_in_groups_are_right_or_refused(options: dict[str, Any]) -> None:
    for seed in range(100, 106):
        found = list(differences(seed, "", **options))
        assert not found, f"{Drawn(seed, **options).options}: {found}"
