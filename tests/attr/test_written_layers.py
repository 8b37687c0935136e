"""Linear layers whose weights are broadcast, or multiplied entry by entry, are linear layers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from tests.attr.subjects import METHODS
from tests.rules.by_hand import doubles

Layer = Callable[[Tensor, Tensor], Tensor]
X = doubles(2, 4, 6)
Q, K, V, OUT, IN, HEAD = (doubles(6, 6, seed=seed) / 2 for seed in range(1, 7))


def by_heads(x: Tensor, w: Tensor) -> Tensor:
    made = x[:, None] @ w.T.unflatten(1, (2, 3)).transpose(0, 1)
    return made.transpose(1, 2).flatten(2)


def by_einsum(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bneo->bno", x[..., None] * w.T)


PRODUCTS: dict[str, Layer] = {
    "a leading dimension": lambda x, w: x @ w.T[None],
    "leading letters": lambda x, w: torch.einsum("bne,bnoe->bno", x, w[None, None]),
    "weights of heads": by_heads,
    "a vector for each output": lambda x, w: torch.stack([x @ row for row in w], -1),
}
ENTRIES: dict[str, Layer] = {
    "entries": lambda x, w: (x[..., None] * w.T).sum(-2),
    "entries of the output": lambda x, w: (x[..., None, :] * w).sum(-1),
    "a mean of entries": lambda x, w: (x[..., None, :] * (6 * w)).mean(-1),
    "entries by einsum": by_einsum,
}
NAMES = [name for name in METHODS if "layer 1" not in name]


class Model:
    """One block of attention, whose layers are written in other words."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        x = F.linear(x, IN)
        q, k, v = (self.layer(x, w).unflatten(-1, (2, 3)).transpose(1, 2) for w in (Q, K, V))
        made = (q @ k.mT).softmax(-1) @ v
        x = x + self.layer(made.transpose(1, 2).flatten(2), OUT)
        return F.linear(x[:, 0], HEAD)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("layer", PRODUCTS | ENTRIES)
@pytest.mark.parametrize("method", NAMES)
def test_a_layer_is_one_however_its_weights_are_multiplied(
    method: str, layer: str, samples: int
) -> None:
    given, written = X[:samples], (PRODUCTS | ENTRIES)[layer]
    if layer in ENTRIES and "gamma" in method:
        with pytest.raises(UnsupportedOperationError, match=r"entry by entry.*`F\.linear"):
            METHODS[method](Model(written)).attribute(given, 0)
        return
    expected = METHODS[method](Model(F.linear)).attribute(given, 0)
    found = METHODS[method](Model(written)).attribute(given, 0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# TransformerAttribution and full LRP divide relevance at each addition of entries.
@pytest.mark.parametrize(
    "method", [name for name in NAMES if "LRP" not in name and "Transformer" not in name]
)
def test_numbers_that_weights_make_of_a_token_are_its_features(method: str) -> None:
    def one_by_one(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack([(x * row).sum(-1) for row in w], -1)

    expected = METHODS[method](Model(F.linear)).attribute(X, 0)
    found = METHODS[method](Model(one_by_one)).attribute(X, 0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", NAMES)
def test_a_signal_that_a_constant_product_is_added_to_is_an_addend(method: str) -> None:
    one, other = doubles(2, 4, 3, seed=8), doubles(2, 3, 6, seed=9)

    def explained(added: Callable[[Tensor], Tensor]) -> Tensor:
        return METHODS[method](lambda x: Model(F.linear)(added(x))).attribute(X, 0)

    found = explained(lambda x: torch.baddbmm(x, one, other))
    torch.testing.assert_close(found, explained(lambda x: x + one @ other))
