"""Attention whose probabilities are cut up, or empty, under the rules that are gradients."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttentionRollout, AttnLRP, ConservativeLRP
from captum_transformer.errors import ExplanationError, UnsupportedOperationError

TOKENS, WIDTH = 6, 4


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    """Queries and keys are the tokens themselves; the values are projected."""

    def __init__(self, empty: bool = False, cut: bool = True, cast: bool = False) -> None:
        super().__init__()
        self.empty, self.cut, self.cast = empty, cut, cast
        self.value = nn.Linear(WIDTH, WIDTH, bias=False).double()
        self.value.weight.data = doubles(WIDTH, WIDTH, seed=1)

    def probabilities(self, x: Tensor) -> Tensor:
        scores = x @ x.mT
        empty = torch.tensor([False] * (TOKENS - 1) + [self.empty])
        scores = scores + torch.zeros(TOKENS, 1).masked_fill(empty[:, None], -torch.inf)
        dtype = torch.float32 if self.cast else None
        probabilities = scores.softmax(-1, dtype=dtype).masked_fill(empty[:, None], 0.0)
        return probabilities.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        probabilities, values = self.probabilities(x), self.value(x)
        if not self.cut:
            return (x + probabilities @ values).flatten(1)
        # Keys in two chunks, in another order.
        keys = torch.tensor([4, 0, 2, 1, 3, 5])
        chunks = probabilities[..., keys].unflatten(-1, (2, 3)).transpose(1, 2)
        summed = torch.einsum("bcqk,bckd->bqd", chunks, values[:, keys].unflatten(1, (2, 3)))
        return (x + summed).flatten(1)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_probabilities_are_held_however_they_were_cut_up(empty, cast):
    x, model = doubles(2, TOKENS, WIDTH), Attention(empty, cast=cast)
    held = model.probabilities(x)
    leaf = x.clone().requires_grad_()
    score = (leaf + held @ model.value(leaf)).flatten(1)[:, 9].sum()
    expected = x * torch.autograd.grad(score, leaf)[0]

    relevance, delta = ConservativeLRP(model).attribute(x, target=9, return_convergence_delta=True)

    torch.testing.assert_close(relevance, expected)
    torch.testing.assert_close(delta, torch.zeros_like(delta))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    "method",
    [AttnLRP, ConservativeLRP, lambda model: ConservativeLRP(model, attention_rule=False)],
    ids=["AttnLRP", "ConservativeLRP", "without the AH rule"],
)
def test_a_query_without_keys_leaves_the_others_as_they_are(method, cut):
    """The model's own gradient is no number there."""
    x = doubles(2, TOKENS, WIDTH)
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(Attention(empty=True)(leaf).sum(), leaf)[0].isnan().any()

    with_empty = method(Attention(empty=True, cut=cut)).attribute(x, target=9)
    without = method(Attention(empty=False, cut=cut)).attribute(x, target=9)

    torch.testing.assert_close(with_empty, without)


class Seen(nn.Module):
    """Attention that can be read before attention that can't."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(cut=False), Attention(cut=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).unflatten(1, (TOKENS, WIDTH)))


@pytest.mark.parametrize("model", [Attention(), Seen()], ids=["alone", "beside another"])
def test_maps_of_probabilities_that_were_cut_up_are_refused(model):
    with pytest.raises(ExplanationError, match="sliding windows in chunks"):
        AttentionRollout(model).attribute(doubles(2, TOKENS, WIDTH), target=9)


def of_one_another(x: Tensor) -> Tensor:
    first, second = (x @ x.mT).softmax(-1), (x @ x.mT * 2).softmax(-1)
    return first.flip(1) @ second.flip(1).unsqueeze(1).squeeze(1)


@pytest.mark.filterwarnings("ignore:The model has attention whose weights are held constant")
def test_products_of_probabilities_with_one_another_are_refused():
    def model(x: Tensor) -> Tensor:
        attended = (x @ x.mT).softmax(-1) @ x
        return attended.flatten(1) + of_one_another(x)[..., :WIDTH].flatten(1)

    with pytest.raises(UnsupportedOperationError, match=r"with one another.*attention_rule=False"):
        ConservativeLRP(model).attribute(doubles(2, TOKENS, WIDTH), target=9)


def test_products_of_probabilities_are_held_where_they_weight_values():
    x = doubles(2, TOKENS, WIDTH)
    method = ConservativeLRP(lambda x: (x + of_one_another(x) @ x).flatten(1))
    relevance, delta = method.attribute(x, target=9, return_convergence_delta=True)
    leaf = x.clone().requires_grad_()
    score = (leaf + of_one_another(x) @ leaf).flatten(1)[:, 9].sum()
    torch.testing.assert_close(relevance, x * torch.autograd.grad(score, leaf)[0])
    torch.testing.assert_close(delta, torch.zeros_like(delta))


def normalised_again(x: Tensor) -> Tensor:
    weights = (x @ x.mT).softmax(-1)
    weights = weights * (weights > 0.1)
    return weights * (1 / weights.sum(-1, keepdim=True)) @ x


def of_exponentials(x: Tensor) -> Tensor:
    """Linear attention, whose features are exponentials."""
    queries, keys = (x * 0.1).exp(), (x * 0.2).exp()
    return queries @ (keys.mT @ x) / (queries @ keys.sum(1, keepdim=True).mT)


@pytest.mark.parametrize("function", [normalised_again, of_exponentials])
def test_what_is_not_known_to_be_a_softmax_is_not_called_one(function):
    def model(x: Tensor) -> Tensor:
        return function(x @ doubles(WIDTH, WIDTH, seed=3)).flatten(1)

    with pytest.raises(
        UnsupportedOperationError, match=r"of softmax weights, as a .* if it is one"
    ):
        AttnLRP(model).attribute(doubles(2, TOKENS, WIDTH), target=9)
