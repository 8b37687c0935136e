"""Functions that the trace runs written out in others: the same values and the same gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
)
from captum_transformer.calling import Arguments
from captum_transformer.rules.propagate import conserved
from captum_transformer.rules.relevance import TABLE
from captum_transformer.trace import traced_forward
from captum_transformer.trace.bodies import WRITTEN_OUT
from captum_transformer.trace.kinds import Kind
from tests.rules.by_hand import doubles

X, Y = doubles(3, 4), doubles(3, 4, seed=1)
SIGNS = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
CLASSES = torch.tensor([2, 0, -100])
WEIGHT = doubles(4, seed=2).abs()
SHARES = Y.softmax(1)
COUNTS = torch.tensor([[0.0, 1.0, 2.0, 5.0]] * 3, dtype=torch.float64)
PLACES = torch.tensor([[0, 2, 0, 0], [1, 1, 1, 1], [3, 0, 3, 0]])
Function = Callable[..., Tensor]


def of_pixels(x: Tensor, **kwargs: Any) -> Tensor:
    return F.cross_entropy(x[..., None] * SIGNS[:2], CLASSES[:, None].expand(3, 2), **kwargs)


LOSSES: dict[str, Function] = {
    "cross entropy": lambda x, **k: F.cross_entropy(x, CLASSES, **k),
    "cross entropy, weighted": lambda x, **k: F.cross_entropy(
        x, CLASSES, WEIGHT, label_smoothing=0.1, **k
    ),
    "cross entropy of shares": lambda x, **k: F.cross_entropy(
        x, SHARES, WEIGHT, label_smoothing=0.1, **k
    ),
    "cross entropy of one": lambda x, **k: F.cross_entropy(x[0], CLASSES[0], **k),
    "cross entropy of pixels": of_pixels,
    "nll": lambda x, **k: F.nll_loss(x.log_softmax(1), CLASSES, WEIGHT, **k),
    "mse": lambda x, **k: F.mse_loss(x, Y, **k),
    "l1": lambda x, **k: F.l1_loss(x, Y, **k),
    "smooth l1": lambda x, **k: F.smooth_l1_loss(x, Y, beta=0.7, **k),
    "huber": lambda x, **k: F.huber_loss(x, Y, delta=0.7, **k),
    "bce": lambda x, **k: F.binary_cross_entropy(x.sigmoid(), SHARES, WEIGHT, **k),
    "bce of logits": lambda x, **k: F.binary_cross_entropy_with_logits(
        x, SHARES, WEIGHT, pos_weight=WEIGHT + 1, **k
    ),
    "kl": lambda x, **k: F.kl_div(x.log_softmax(1), SHARES * (SHARES > 0.1), **k),
    "kl of logarithms": lambda x, **k: F.kl_div(
        x.log_softmax(1), SHARES.log(), log_target=True, **k
    ),
    "cosine": lambda x, **k: F.cosine_embedding_loss(x, Y, SIGNS, margin=-0.9, **k),
    "ranking": lambda x, **k: F.margin_ranking_loss(x[:, 0], Y[:, 0], SIGNS, margin=0.3, **k),
    "soft margin": lambda x, **k: F.soft_margin_loss(x, Y.sign(), **k),
    "soft margins of labels": lambda x, **k: F.multilabel_soft_margin_loss(
        x, SHARES.round(), WEIGHT, **k
    ),
    "poisson": lambda x, **k: F.poisson_nll_loss(x, COUNTS, **k),
    "poisson of rates": lambda x, **k: F.poisson_nll_loss(
        x.exp(), COUNTS, log_input=False, full=True, **k
    ),
    "gaussian": lambda x, **k: F.gaussian_nll_loss(x, Y, Y.square(), full=True, **k),
    "gaussian of a variance": lambda x, **k: F.gaussian_nll_loss(
        Y, SHARES, x[:, 0].square(), eps=0.2, **k
    ),
    "gaussian of one variance": lambda x, **k: F.gaussian_nll_loss(x, Y, 0.5, **k),
    "hinge": lambda x, **k: F.hinge_embedding_loss(x, Y.sign(), 0.7, **k),
    "margins": lambda x, **k: F.multi_margin_loss(x, CLASSES.clamp(min=0), **k),
    "squared margins": lambda x, **k: F.multi_margin_loss(
        x, CLASSES.clamp(min=0), 2, 0.7, WEIGHT, **k
    ),
    "triplets": lambda x, **k: F.triplet_margin_loss(x, Y, SHARES, 2.0, **k),
    "swapped triplets": lambda x, **k: F.triplet_margin_loss(
        x, Y, SHARES, 2.0, p=1, swap=True, **k
    ),
    "triplets of a distance": lambda x, **k: F.triplet_margin_with_distance_loss(
        x, Y, SHARES, distance_function=lambda a, b: 1 - F.cosine_similarity(a, b), **k
    ),
}
OTHERS: dict[str, Function] = {
    "cross": lambda x: torch.cross(x[:, :3], Y[:, :3], dim=1),
    "linalg.cross": lambda x: torch.linalg.cross(x[:, :3], Y[:, 1:]),
    "diff": lambda x: x.diff(2, prepend=Y),
    "diff of a matrix": lambda x: torch.diff(x.unsqueeze(-1), dim=-2),
    "multi_dot": lambda x: torch.linalg.multi_dot([x, Y.mT, Y]),
    "kron": lambda x: torch.kron(x, Y[0]),
    "kron of matrices": lambda x: torch.kron(x[:2], Y),
    "trapezoid": lambda x: torch.trapezoid(x, dx=0.5),
    "trapezoid at places": lambda x: torch.trapezoid(x, Y[0]),
    "renorm": lambda x: x.renorm(2, 0, 1.5),
    "hypot": lambda x: torch.hypot(x, Y),
    "inverse": lambda x: torch.linalg.inv(x[:, :3]),
    "det": lambda x: x[:, :3].det(),
    "matrix power": lambda x: torch.linalg.matrix_power(x[:, :3], 3),
    "solve": lambda x: torch.linalg.solve(Y[:, :3], x),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "outer": lambda x: torch.outer(x[0], Y[0]),
    **{
        f"scatter_reduce, {reduce}, {own}": lambda x, reduce=reduce, own=own: Y.scatter_reduce(
            1, PLACES, x, reduce, include_self=own
        )
        for reduce in ("sum", "mean", "amax", "amin")
        for own in (True, False)
    },
    "scatter_reduce into": lambda x: x.clone().scatter_reduce_(1, PLACES, x * Y, "mean"),
}
REDUCED = {
    f"{name}, {reduction}": (lambda x, f=function, r=reduction: f(x, reduction=r))
    for name, function in LOSSES.items()
    for reduction in ("none", "mean", "sum")
}
ALL: dict[str, Function] = {
    **OTHERS,
    **REDUCED,
    "kl, batchmean": lambda x: F.kl_div(x.log_softmax(1), SHARES, reduction="batchmean"),
    "mse, as it was": lambda x: F.mse_loss(x, Y, size_average=False),
    "mse, not reduced": lambda x: F.mse_loss(x, Y, reduce=False),
}


# Which sample their terms belong to is unknown, so they have no relevance.
OF_ONE: dict[str, Function] = {
    "margins of one": lambda x: F.multi_margin_loss(x[0], CLASSES[0]),
    "squared margins of one": lambda x: F.multi_margin_loss(x[0], CLASSES[0], 2, weight=WEIGHT),
}


@pytest.mark.filterwarnings("ignore:.*reduction.*")
@pytest.mark.parametrize("name", [*ALL, *OF_ONE])
def test_values_and_gradients_are_those_of_torch(name: str) -> None:
    function = (ALL | OF_ONE)[name]
    leaf = X.clone().requires_grad_()
    expected = function(leaf)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    with traced_forward(function, Arguments(X)) as forward:
        assert Kind.UNKNOWN not in {operation.kind for operation in forward.tape.operations}
        torch.testing.assert_close(forward.output, expected)
        (found,) = forward.gradients(forward.output, forward.edges)
    torch.testing.assert_close(found, gradient)


@pytest.mark.filterwarnings("ignore:.*reduction.*")
@pytest.mark.parametrize("name", ALL)
def test_relevance_goes_somewhere_known(name: str) -> None:
    with traced_forward(ALL[name], Arguments(X), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        seeds = {value: torch.ones_like(forward.output)}
        arrived, ledger = conserved(forward.tape, seeds, TABLE, forward.values)
    taken = sum(part.amount.sum() for part in ledger.taken)
    total = sum(part.sum() for part in arrived.values()) + taken
    torch.testing.assert_close(total, value.shape.numel() * torch.ones_like(total))


REFUSED_BY_TORCH: dict[str, Function] = {
    "negative": lambda x: F.gaussian_nll_loss(x, Y, -x.square()),
    "size": lambda x: F.gaussian_nll_loss(x, Y, x[:2, :1].square()),
    "p == 1": lambda x: F.multi_margin_loss(x, CLASSES.clamp(min=0), 3),
    "margin must": lambda x: F.triplet_margin_loss(x, Y, Y, 0.0),
}


@pytest.mark.parametrize("said", REFUSED_BY_TORCH)
def test_what_torch_refuses_is_refused_with_its_words(said: str) -> None:
    with pytest.raises(ValueError, match=said) as plain:
        REFUSED_BY_TORCH[said](X)
    with (
        pytest.raises(ValueError, match=said) as traced,
        traced_forward(REFUSED_BY_TORCH[said], Arguments(X)),
    ):
        pass
    assert str(traced.value).startswith(str(plain.value))


@pytest.mark.parametrize("method", [AttnLRP, ConservativeLRP, GenericAttentionRelevance])
def test_a_loss_may_be_the_score(method: Callable[..., Any]) -> None:
    def loss(x: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x)
        return F.cross_entropy(x.mean(1), CLASSES.clamp(min=0), reduction="none")

    def written(x: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x)
        return -x.mean(1).log_softmax(1)[range(3), CLASSES.clamp(min=0)]

    tokens = doubles(3, 5, 4)
    found, expected = (method(model).attribute(tokens) for model in (loss, written))
    torch.testing.assert_close(found, expected)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def crossed(a: Tensor, b: Tensor) -> Tensor:
    pairs = ((1, 2), (2, 0), (0, 1))
    return torch.stack([a[:, i] * b[:, j] - a[:, j] * b[:, i] for i, j in pairs], 1)


W, V = doubles(4, 4), doubles(4, 4, seed=3)
Spelling = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
# Each function of the first token and of the mean of the others, and the same by hand.
SPELLED: dict[str, Spelling] = {
    "lerp": (lambda a, b: torch.lerp(a, b, 0.5), lambda a, b: 0.5 * a + 0.5 * b),
    "lerp all the way": (lambda a, b: a.lerp(b, 1.0), lambda a, b: 0.0 * a + 1.0 * b),
    "lerp of weights": (lambda a, b: a.lerp(b, WEIGHT), lambda a, b: (1 - WEIGHT) * a + WEIGHT * b),
    "addcdiv": (lambda a, b: torch.addcdiv(a, b, WEIGHT), lambda a, b: a + b / WEIGHT),
    "inner": (lambda a, b: torch.inner(a + b, W), lambda a, b: (a + b) @ W.T),
    "linalg_vecdot": (
        lambda a, b: torch.linalg.vecdot(a, b)[:, None],
        lambda a, b: (a * b).sum(1, keepdim=True),
    ),
    "glu": (lambda a, b: F.glu(torch.cat([a, b], 1)), lambda a, b: a * b.sigmoid()),
    "cosine_similarity": (
        lambda a, b: F.cosine_similarity(a, b)[:, None],
        lambda a, b: (unit(a) * unit(b)).sum(1, keepdim=True),
    ),
    "broadcast_tensors": (
        lambda a, b: sum(torch.broadcast_tensors(a[:, None], b[..., None])),
        lambda a, b: a[:, None].expand(3, 4, 4) + b[..., None].expand(3, 4, 4),
    ),
    "atleast_1d": (lambda a, b: torch.atleast_1d(a) + b, lambda a, b: a + b),
    "atleast_2d": (lambda a, b: sum(torch.atleast_2d(a, b)), lambda a, b: a + b),
    "atleast_3d": (lambda a, b: a + torch.atleast_3d(b)[..., 0], lambda a, b: a + b),
    "cross": (
        lambda a, b: torch.cross(a[:, 1:], b[:, 1:], dim=1),
        lambda a, b: crossed(a[:, 1:], b[:, 1:]),
    ),
    "linalg_cross": (
        lambda a, b: torch.linalg.cross(a[:, 1:], b[:, 1:]),
        lambda a, b: crossed(a[:, 1:], b[:, 1:]),
    ),
    "diff": (lambda a, b: torch.stack([a, b], 1).diff(dim=1), lambda a, b: (b - a)[:, None]),
    "linalg_multi_dot": (
        lambda a, b: torch.linalg.multi_dot([a + b, W, V]),
        lambda a, b: (a + b) @ W @ V,
    ),
    "chain_matmul": (lambda a, b: torch.chain_matmul(a + b, W, V), lambda a, b: (a + b) @ W @ V),
    "kron": (
        lambda a, b: torch.kron(a + b, W[:1]),
        lambda a, b: ((a + b)[:, :, None] * W[0]).flatten(1),
    ),
    "trapezoid": (
        lambda a, b: torch.trapezoid(torch.stack([a, b, a], 1), dim=1),
        lambda a, b: (a + b) / 2 + (b + a) / 2,
    ),
    "trapz": (
        lambda a, b: torch.trapz(torch.stack([a, b], 1), dim=1),
        lambda a, b: (a + b) / 2,
    ),
    "renorm": (lambda a, b: (a + b).renorm(2, 0, 1e-3), lambda a, b: unit(a + b) * 1e-3),
    "hypot": (torch.hypot, lambda a, b: (a * a + b * b) ** 0.5),
    "var_mean": (
        lambda a, b: torch.var_mean(a + b, -1, keepdim=True)[1],
        lambda a, b: (a + b).mean(-1, keepdim=True),
    ),
    "std_mean": (
        lambda a, b: torch.std_mean(a + b, -1, keepdim=True, correction=0)[1],
        lambda a, b: (a + b).mean(-1, keepdim=True),
    ),
    "pdist": (
        lambda a, b: torch.stack(
            [torch.pdist(torch.stack(pair)) for pair in zip(a, b, strict=True)]
        ),
        lambda a, b: torch.stack([(p - q).norm()[None] for p, q in zip(a, b, strict=True)]),
    ),
    "scatter_reduce": (
        lambda a, b: a.scatter_reduce(1, PLACES, b, "mean"),
        lambda a, b: (
            a.scatter_add(1, PLACES, b)
            / torch.ones_like(X).scatter_add(1, PLACES, torch.ones_like(X))
        ),
    ),
    "zero": (lambda a, b: a.clone().zero_() + b, lambda a, b: torch.zeros_like(a) + b),
    "column_stack": (lambda a, b: torch.column_stack([a, b]), lambda a, b: torch.cat([a, b], 1)),
    "hstack": (lambda a, b: torch.hstack([a, b]), lambda a, b: torch.cat([a, b], 1)),
    "vstack": (lambda a, b: torch.vstack([a, b])[3:], lambda a, b: b),
    "row_stack": (lambda a, b: torch.vstack([a, b])[:3], lambda a, b: a),
    "dstack": (
        lambda a, b: torch.dstack([a, b]) @ WEIGHT[:2],
        lambda a, b: torch.stack([a, b], 2) @ WEIGHT[:2],
    ),
    "expand_as": (lambda a, b: a + b[:, :1].expand_as(a), lambda a, b: a + b[:, :1].expand(3, 4)),
    "reshape_as": (lambda a, b: a + b.reshape_as(a), lambda a, b: a + b),
    "view_as": (lambda a, b: a + b.view_as(a), lambda a, b: a + b),
    "type_as": (lambda a, b: a + b.type_as(a), lambda a, b: a + b),
}


def test_each_is_spelled_out_by_hand() -> None:
    assert {name.split()[0] for name in SPELLED} == set(WRITTEN_OUT)


@pytest.mark.parametrize("name", SPELLED)
@pytest.mark.parametrize("method", [AttentionRollout, GenericAttentionRelevance])
def test_tokens_have_the_shares_of_the_same_by_hand(
    name: str, method: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    if name == "trapezoid" and method is GenericAttentionRelevance:
        why = "steps between stacked tokens that are summed count as pooled tokens"
        request.node.add_marker(pytest.mark.xfail(reason=why, strict=True))

    def score(how: Callable[[Tensor, Tensor], Tensor]) -> Function:
        def model(x: Tensor) -> Tensor:
            x = x + F.scaled_dot_product_attention(x, x, x)
            return how(x[:, 0], x[:, 1:].mean(1)).flatten(1).sum(1)

        return model

    tokens = doubles(3, 5, 4)
    of_torch, by_hand = map(score, SPELLED[name])
    torch.testing.assert_close(of_torch(tokens), by_hand(tokens))
    found, expected = (method(model).attribute(tokens) for model in (of_torch, by_hand))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["atleast_1d", "atleast_2d", "atleast_3d"])
def test_dimensions_are_added_where_torch_adds_them(name: str) -> None:
    for ndim in range(5):
        tensor = doubles(2, 3, 4, 5)[(0,) * (4 - ndim)]
        torch.testing.assert_close(WRITTEN_OUT[name](tensor), getattr(torch, name)(tensor))
