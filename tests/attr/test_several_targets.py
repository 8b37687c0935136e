"""What is the same for all targets is computed once."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from captum_transformer import TransformerAttribution
from tests.attr.tiny_models import embeddings, encoder

ATEN = torch.ops.aten
LINEAR = (ATEN.addmm, ATEN.mm)


def multiplications(function: Callable[[], Any], *kinds: Any) -> int:
    """Counts the multiplications of a function, or of only some kinds of operations."""
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for kind, count in counts.items() if not kinds or kind in kinds)


def test_transformer_attribution_multiplies_magnitudes_once() -> None:
    model, tokens = encoder(), embeddings()
    method = TransformerAttribution(model)
    forward = multiplications(lambda: model(tokens), *LINEAR)
    one, two, three = (
        multiplications(lambda: method.attribute_targets(tokens, targets), *LINEAR)  # noqa: B023
        for targets in ([0], [0, 1], [0, 1, 2])
    )
    # Sums of |x w| take as many multiplications as the model itself. The last layer's are fewer,
    # since one token is read.
    saved = one - forward - (two - one)
    assert forward / 2 < saved <= forward
    assert three - two == two - one


def test_each_target_is_explained_as_if_it_were_the_only_one() -> None:
    method, tokens = TransformerAttribution(encoder()), embeddings()
    targets = [0, 2, torch.tensor([1, 0, 2]), 0]
    together = method.attribute_targets(tokens, targets)
    for target, found in zip(targets, together, strict=True):
        assert torch.equal(found, method.attribute(tokens, target))
