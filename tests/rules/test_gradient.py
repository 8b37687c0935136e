"""What the ICML 2022 rules hold constant, against gradients taken by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import ConservativeLRP
from captum_transformer.errors import UnsupportedOperationError

PLAIN = {"attention_rule": False, "layer_norm_rule": False}
LN = {"attention_rule": False}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def score(norm, weight):
    """One score per sample that is not linear in the norm's output."""
    unchanged = torch.eye(6, dtype=torch.float64)  # a linear layer tells which features are
    return lambda x: (norm(F.linear(x, unchanged)) * weight).tanh().flatten(1)


def held(x: Tensor, weight: Tensor, *, mean: bool, centre: bool) -> Tensor:
    """Gradient x input of the score with the denominator (and the mean) detached."""
    leaf = x.clone().requires_grad_()
    average = leaf.mean(-1, keepdim=True) if centre else torch.zeros_like(leaf[..., :1])
    centred = leaf - (average.detach() if mean else average)
    deviation = ((leaf - average).square().mean(-1, keepdim=True) + 1e-5).sqrt().detach()
    target = (centred / deviation * weight).tanh().flatten(1)[:, 5].sum()
    return x * torch.autograd.grad(target, leaf)[0]


def rms(x, eps=1e-5):
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def in_place_rms(x):
    variance = x.pow(2).mean(-1, keepdim=True)
    return x * variance.add_(1e-5).rsqrt_()


LAYER_NORMS = {
    "module": lambda x: F.layer_norm(x, (6,)),
    "function": lambda x: torch.layer_norm(x, (6,), eps=1e-5),
    "module with weights": nn.LayerNorm(6).double(),
    "variance": lambda x: (
        (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
    ),
    "rsqrt": lambda x: (
        (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + 1e-5)
    ),
    "group norm": lambda x: F.group_norm(x.flatten(0, 1)[..., None], 1)[..., 0].view_as(x),
}
RMS_NORMS = {
    "function": lambda x: F.rms_norm(x, (6,), eps=1e-5),
    "module": nn.RMSNorm(6, eps=1e-5).double(),
    "division": lambda x: x / rms(x),
    "in-place division": lambda x: x.clone().div_(rms(x)),
    "rsqrt": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
    "power": lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-5) ** -0.5,
    "power function": lambda x: x * torch.pow(x.square().mean(-1, keepdim=True) + 1e-5, -0.5),
    "reciprocal": lambda x: x * rms(x).reciprocal(),
    "reflected": lambda x: x * (1 / rms(x)),
    "in place": in_place_rms,
}


@pytest.mark.parametrize("norm", LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_layer_norm_holds_its_deviation(norm, x, weight):
    result = ConservativeLRP(score(norm, weight), **LN).attribute(x, target=5)
    torch.testing.assert_close(result, held(x, weight, mean=False, centre=True))


@pytest.mark.parametrize("norm", LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_layer_norm_can_hold_its_mean_too(norm, x, weight):
    result = ConservativeLRP(score(norm, weight), hold_mean=True, **LN).attribute(x, target=5)
    torch.testing.assert_close(result, held(x, weight, mean=True, centre=True))


def test_a_mean_of_what_may_be_no_features_is_refused(x, weight):
    def model(x):
        return (LAYER_NORMS["variance"](x) * weight).flatten(1)

    with pytest.raises(UnsupportedOperationError, match="subtracts the mean of each token"):
        ConservativeLRP(model, hold_mean=True, **LN).attribute(x, target=5)


@pytest.mark.parametrize("norm", RMS_NORMS.values(), ids=RMS_NORMS)
def test_rms_norm_holds_its_root_mean_square(norm, x, weight):
    result = ConservativeLRP(score(norm, weight), **LN).attribute(x, target=5)
    torch.testing.assert_close(result, held(x, weight, mean=False, centre=False))


@pytest.mark.parametrize("norm", [*LAYER_NORMS.values(), *RMS_NORMS.values()])
def test_without_rules_it_is_gradient_times_input(norm, x, weight):
    leaf = x.clone().requires_grad_()
    expected = x * torch.autograd.grad(score(norm, weight)(leaf)[:, 5].sum(), leaf)[0]
    result = ConservativeLRP(score(norm, weight), **PLAIN).attribute(x, target=5)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("norm", [*LAYER_NORMS.values(), *RMS_NORMS.values()])
def test_the_rules_change_no_output(norm, x, weight):
    method = ConservativeLRP(score(norm, weight), **LN)
    relevance, delta = method.attribute(x, target=5, return_convergence_delta=True)
    output = score(norm, weight)(x)[:, 5]
    torch.testing.assert_close(relevance.sum((1, 2)) - delta, output)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6), nn.GroupNorm(2, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_keep_the_precision_of_the_model(dtype, norm, x):
    norm, seen = norm.to(dtype), []

    def model(x):
        seen.append(norm(x))
        return seen[0].flatten(1)

    result = ConservativeLRP(model, **LN).attribute(x.to(dtype), target=0)
    assert seen[0].dtype == result.dtype == dtype


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.mlp = nn.Linear(6, 6)
        self.double()

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.mlp(x).flatten(1)


def test_gamma_must_fit_the_layers(x):
    with pytest.raises(AssertionError, match=r"gamma has 2 values, the model 1 attention layers"):
        ConservativeLRP(Block(), gamma=[0.1, 0.2]).attribute(x, target=0)


def test_gamma_can_keep_the_output(x):
    output = Block()(x)[:, 0]
    for keeps, close in ((True, True), (False, False)):
        method = ConservativeLRP(Block(), gamma=0.3, gamma_keeps_output=keeps)
        relevance, delta = method.attribute(x, target=0, return_convergence_delta=True)
        assert torch.allclose(relevance.sum((1, 2)) - delta, output) == close


def test_gamma_favours_positive_contributions(x):
    plain = ConservativeLRP(Block(), gamma=0.0).attribute(x, target=0)
    favoured = ConservativeLRP(Block(), gamma=0.5, gamma_keeps_output=True).attribute(x, target=0)
    assert not torch.allclose(plain, favoured)


class Deformable(nn.Module):
    """Attention to a grid; then its places are moved as the input says, or stay where they are."""

    def __init__(self, moves: bool) -> None:
        super().__init__()
        self.attention, self.move = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 2)
        self.moves = moves

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        grid = self.move(x) if self.moves else self.move.weight.T.expand(len(x), 6, 2)
        field = x.transpose(1, 2).unflatten(2, (2, 2))
        return F.grid_sample(field, grid[:, None], align_corners=False).flatten(1)


def test_places_that_depend_on_the_inputs_are_refused(x: Tensor) -> None:
    moving, fixed = Deformable(True).double(), Deformable(False).double()
    with pytest.raises(UnsupportedOperationError, match=r"`grid_sample`.*attention_rule=False"):
        ConservativeLRP(moving).attribute(x, 5)
    assert ConservativeLRP(moving, attention_rule=False).attribute(x, 5).any()
    assert ConservativeLRP(fixed).attribute(x, 5).any()
