"""Relevance is conserved, or refused, through every kind of operation that has a rule."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.relevance import TABLE
from captum_transformer.trace import traced_forward
from captum_transformer.trace.kinds import Kind


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y, Z = (doubles(2, 3, 4, 4, seed=i) for i in range(3))
TRIANGLE = doubles(4, 4, seed=3).tril() + 3 * torch.eye(4, dtype=torch.float64)
PLACES = doubles(2, 5, 5, 2, seed=4).tanh()


def handed_on(function, *inputs: Tensor) -> tuple[Tensor, list[Tensor | None], dict]:
    """What arrives at the last operation of a function, and what its rule makes of that."""
    with traced_forward(function, Arguments(inputs), keep=TABLE.keep) as forward:
        operation = forward.tape.operations[-1]
        tensors = [None if o is None else doubles(*o.shape, seed=9) for o in operation.outputs]
        shares = TABLE(operation, list(tensors))
        return sum(t.sum() for t in tensors if t is not None), list(shares), shares.taken


ONE = {
    "sum": lambda x: x.sum((1, 2)),
    "mean": lambda x: x.mean(-1),
    "cumsum": lambda x: x.cumsum(2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 3),
    **{
        f"interpolate {mode}": lambda x, mode=mode: F.interpolate(x, scale_factor=1.5, mode=mode)
        for mode in ("nearest", "bilinear", "bicubic", "area")
    },
    "fold": lambda x: F.fold(x.reshape(2, 12, 4), (3, 3), 2),
    **{
        f"vector_norm {p}": lambda x, p=p: torch.linalg.vector_norm(x, p, dim=-1)
        for p in (0.5, 1, 2, 3, torch.inf)
    },
    **{
        f"matrix_norm {p}": lambda x, p=p: torch.linalg.matrix_norm(x, p)
        for p in ("fro", "nuc", 1, 2)
    },
    "norm": lambda x: x.norm(dim=1),
    "prod": lambda x: x.prod(1),
    "cumprod": lambda x: x.cumprod(1),
    "var": lambda x: x.var(-1),
    "std": lambda x: x.std(-1),
    "std biased": lambda x: x.std((2, 3), correction=0),
    "logsumexp": lambda x: x.logsumexp(-1),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "amax": lambda x: x.amax((1, 2)),
    "aminmax": lambda x: torch.aminmax(x, dim=1),
    "max": lambda x: x.max(1).values,
    "median": lambda x: x.median(1).values,
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(2, -1).values,
    "cummax": lambda x: x.cummax(1).values,
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "grid_sample": lambda x: F.grid_sample(x, PLACES, padding_mode="border", align_corners=False),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(TRIANGLE, x, upper=False),
    "conv2d": lambda x: F.conv2d(x * 1, doubles(5, 3, 2, 2, seed=5), doubles(5, seed=6)),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x * 1, doubles(3, 5, 2, 2, seed=5)),
}


@pytest.mark.parametrize("name", ONE)
def test_one_signal_gets_all(name: str) -> None:
    if name == "aminmax" and not differentiable(torch.aminmax):
        with pytest.raises(UnsupportedOperationError, match="derivative is not defined"):
            handed_on(ONE[name], X)
        return
    arrived, shares, taken = handed_on(ONE[name], X)
    assert set(taken) <= {Reason.EPSILON}
    lost = sum(total.sum() for total in taken.values())
    assert abs(lost) < 1e-5 or "conv" in name  # of which an output may have no positive part
    torch.testing.assert_close(shares[0].sum() + lost, arrived, rtol=1e-6, atol=1e-7)


def differentiable(function) -> bool:
    try:
        function(X.clone().requires_grad_())[0].sum().backward()
    except RuntimeError as reason:  # torch.aminmax, in PyTorch 2.9
        return "not implemented" not in str(reason)
    return True


TWO = {
    "maximum": torch.maximum,
    "fmin": torch.fmin,
    "cdist": lambda x, y: torch.cdist(x, y[:, :, :3]),
    "cdist 1": lambda x, y: torch.cdist(x, y[:, :, :3], p=1.0),
    "dist": torch.dist,
    "pairwise_distance": F.pairwise_distance,
    "bmm": lambda x, y: x.flatten(0, 1).bmm(y.flatten(0, 1)),
    "conv2d": lambda x, y: F.conv2d(x * 1, y[:, :, :2, :2]),
    "bilinear": lambda x, y: F.bilinear(x, y, doubles(5, 4, 4, seed=5)),
    "index_add": lambda x, y: x.index_add(1, torch.tensor([0, 2]), y[:, :2]),
    "scatter_add": lambda x, y: x.scatter_add(3, torch.zeros(2, 3, 4, 4, dtype=torch.long), y),
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
}


@pytest.mark.parametrize("name", TWO)
def test_two_signals_get_all_between_them(name: str) -> None:
    arrived, shares, taken = handed_on(TWO[name], X, Y)
    assert all(total.abs().max() < 1e-5 for total in taken.values())
    torch.testing.assert_close(sum(share.sum() for share in shares), arrived, rtol=1e-5, atol=1e-5)


BESIDE_A_CONSTANT = {
    "cat": (Reason.JOINED, lambda x: torch.cat([x, Y], 1)),
    "where": (Reason.JOINED, lambda x: torch.where(Y > 0, x, Y)),
    "masked_fill": (Reason.FILLED, lambda x: x.masked_fill(Y > 0, 2.0)),
    "pad": (Reason.FILLED, lambda x: F.pad(x, (1, 1), value=1.0)),
    "tril": (Reason.FILLED, lambda x: x.tril()),
    "im2col": (Reason.FILLED, lambda x: F.unfold(x, 2, padding=1)),
    "add": (Reason.ADDED, lambda x: x + Y),
    "rsub": (Reason.ADDED, lambda x: Y - x),
    "baddbmm": (
        Reason.ADDED,
        lambda x: torch.baddbmm(Y.flatten(0, 1), x.flatten(0, 1), x.flatten(0, 1)),
    ),
    "maximum": (Reason.CONSTANT, lambda x: torch.maximum(x, Y)),
    "cdist": (Reason.CONSTANT, lambda x: torch.cdist(x, Y)),
    "index_add": (Reason.CONSTANT, lambda x: Y.index_add(1, torch.tensor([0, 2]), x[:, :2])),
    "attention": (Reason.CONSTANT, lambda x: F.scaled_dot_product_attention(x, x, Y)),
    "attention bias": (
        Reason.ADDED,
        lambda x: F.scaled_dot_product_attention(x, x * 1, x * 2, attn_mask=doubles(4, 4, seed=7)),
    ),
}


@pytest.mark.parametrize("name", BESIDE_A_CONSTANT)
def test_the_share_of_a_constant_is_recorded(name: str) -> None:
    reason, function = BESIDE_A_CONSTANT[name]
    arrived, shares, taken = handed_on(function, X)
    handed = sum(share.sum() for share in shares if share is not None)
    assert taken[reason].abs().max() > 1e-3
    total = handed + sum(one.sum() for one in taken.values())
    torch.testing.assert_close(total, arrived, rtol=1e-6, atol=1e-6)
    lost = taken.get(Reason.EPSILON, torch.zeros(())).abs().max()
    assert lost < 1e-5


REFUSED = {
    "count": lambda x: torch.linalg.vector_norm(x, 0, dim=-1),
    "power": lambda x: x.abs() ** x,
    "norm with learned scale of the input": lambda x: F.layer_norm(x, (4,), x[0, 0, 0]),
    "positions that depend": lambda x: F.grid_sample(Y, x[:, 0, :, None, :2], align_corners=False),
    "spectrum": torch.fft.rfft,
    "matrix": lambda x: torch.linalg.solve_triangular(x.tril(), Y, upper=False),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"no rule for|not in the table"):
        handed_on(REFUSED[name], X)


def test_kinds_without_a_rule_are_the_expected_ones() -> None:
    others = {kind for kind in Kind if kind not in TABLE.entries}
    assert others == {Kind.ASKS, Kind.TRANSFORM, Kind.CONTRAST, Kind.DATA, Kind.UNKNOWN}
