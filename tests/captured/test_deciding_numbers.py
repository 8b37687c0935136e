"""Masks and other further arguments may decide how many entries a result has, if they stay."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttnLRP, load_captured
from captum_transformer.errors import CaptureMismatchError
from tests.captured.models import assert_same, classifier, values

WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "an index by a mask": lambda x, mask: x[mask].view(3, -1, 8),
    "of each sample": lambda x, mask: torch.stack(
        [one[kept] for one, kept in zip(x, mask, strict=True)]
    ),
    "masked_select": lambda x, mask: x.masked_select(mask[..., None]).view(3, -1, 8),
    "nonzero": lambda x, mask: x[:, mask[0].nonzero()[:, 0]],
    "where": lambda x, mask: x[:, torch.where(mask[0])[0]],
    "a list": lambda x, mask: x[:, [n for n, kept in enumerate(mask[0].tolist()) if kept]],
    "an array": lambda x, mask: x[:, mask[0].numpy().nonzero()[0]],
    "equal": lambda x, mask: x[:, :4] if torch.equal(mask[0], mask[1].flip(0)) else x,
    "unique": lambda x, mask: x * len(mask.cumsum(1).unique_consecutive()),
    "repeat_interleave": lambda x, mask: x.repeat_interleave(mask[0].long(), dim=1),
}


class Picks(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way = classifier(), way

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.inner(WAYS[self.way](x, mask))


def mask_of(*kept: int) -> Tensor:
    return torch.tensor([kept] * 3).bool()


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.slow] * (place > 0)) for place, way in enumerate(WAYS)],
)
def test_numbers_of_a_further_argument_have_to_stay(way: str) -> None:
    method = AttnLRP(Picks(way))
    mask, other = mask_of(1, 1, 1, 1, 0, 0), mask_of(0, 1, 1, 1, 1, 0)
    captured = method.capture(values(), 1, (mask,), recapture=True)
    for given in (mask, other, mask):
        expected = method.attribute(values(1), [2] * 3, (given,))
        assert_same(captured(values(1), 2, (given,)), expected)
    again = method.capture(values(), 1, (mask,))
    with pytest.raises(CaptureMismatchError, match=r"the model reads the numbers? .*_args\[0\]"):
        again(values(1), 2, (other,))


@pytest.mark.slow
def test_saved_with_such_numbers(tmp_path: Path) -> None:
    method = AttnLRP(Picks("an index by a mask"))
    mask, other = mask_of(1, 1, 1, 1, 0, 0), mask_of(0, 1, 1, 1, 1, 0)
    captured = method.capture(values(), 1, (mask,))
    captured.save(tmp_path / "explain.pt2")
    loaded = load_captured(tmp_path / "explain.pt2")
    assert_same(loaded(values(1), 2, (mask,)), captured(values(1), 2, (mask,)))
    with pytest.raises(CaptureMismatchError, match="the numbers of additional_forward_args"):
        loaded(values(1), 2, (other,))
