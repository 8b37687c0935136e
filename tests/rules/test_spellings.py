"""Programs that compute the same get the same relevance, however they are written."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.calling import Arguments
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import TABLE
from captum_transformer.trace import traced_forward

Program = Callable[[Tensor, Tensor], Tensor]


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = doubles(2, 3, 4, seed=0), doubles(2, 3, 4, seed=1)
W, TERM, SCALE = doubles(4, 5, seed=2), doubles(3, 4, seed=3), doubles(4, seed=4)
KERNEL = doubles(5, 4, 1, seed=5)


def relevance_of(program: Program, x: Tensor = X, y: Tensor = Y) -> list[Tensor]:
    with traced_forward(program, Arguments((x, y)), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        relevance = doubles(*forward.output.shape, seed=6)
        found = propagate(forward.tape, {value: relevance}, TABLE, forward.values)
        return [found[v] for v in forward.values]


def root(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


SAME: dict[str, list[Program]] = {
    "linear map": [
        lambda x, y: F.linear(x, W.T) * y.sum(),
        lambda x, y: x @ W * y.sum(),
        lambda x, y: torch.matmul(x, W) * y.sum(),
        lambda x, y: torch.einsum("bni,io->bno", x, W) * y.sum(),
        lambda x, y: torch.tensordot(x, W, 1) * y.sum(),
        lambda x, y: torch.bmm(x, W.expand(2, 4, 5)) * y.sum(),
        lambda x, y: torch.inner(x, W.T) * y.sum(),
        lambda x, y: F.conv1d((x * 1).mT, W.T[..., None]).mT * y.sum(),
        lambda x, y: (
            torch.addmm(SCALE.new_ones(5), x.reshape(6, 4), W).sub(1).view(2, 3, 5) * y.sum()
        ),
    ],
    "product of entries": [
        lambda x, y: x * y,
        lambda x, y: torch.mul(y, x),
        lambda x, y: x.clone().mul_(y),
        lambda x, y: torch.einsum("bni,bni->bni", x, y),
    ],
    "inner product": [
        lambda x, y: (x * y).sum(-1),
        torch.linalg.vecdot,
        lambda x, y: torch.einsum("bni,bni->bn", x, y),
        lambda x, y: (x[..., None, :] @ y[..., None])[..., 0, 0],
    ],
    "norm": [
        lambda x, y: (x * root(x)) * SCALE + y,
        lambda x, y: x * (root(x) * SCALE) + y,
        lambda x, y: SCALE * (root(x) * x) + y,
        lambda x, y: F.rms_norm(x, (4,), SCALE, 1e-6) + y,
    ],
    "softmax": [
        lambda x, y: (x @ y.mT).softmax(-1) @ y,
        lambda x, y: torch.softmax(x @ y.mT, axis=-1) @ y,
        lambda x, y: F.softmax(input=x @ y.mT, dim=2).matmul(y),
        lambda x, y: torch.einsum("bqk,bkd->bqd", (x @ y.mT).softmax(dim=-1), y),
    ],
    "sum and constant": [
        lambda x, y: x * 1 + TERM + y,
        lambda x, y: torch.add(x, TERM) + y,
        lambda x, y: x.clone().add_(TERM) + y,
        lambda x, y: TERM + x + y,
        lambda x, y: x - (-TERM) + y,
    ],
    "difference": [
        lambda x, y: x - y,
        lambda x, y: x.sub(y),
        lambda x, y: torch.rsub(y, x),
        lambda x, y: torch.subtract(x, y, alpha=1),
    ],
    "product and term": [
        lambda x, y: torch.baddbmm(x, y @ y.mT, y),
        lambda x, y: x + torch.bmm(y @ y.mT, y),
        lambda x, y: torch.einsum("bij,bjd->bid", y @ y.mT, y) + x,
    ],
    "linear map and term": [
        lambda x, y: torch.addmm(x.reshape(6, 4), y.reshape(6, 4), W[:, :4]).view(2, 3, 4),
        lambda x, y: x + y @ W[:, :4],
    ],
    "entries and term": [
        lambda x, y: torch.addcmul(x, y, x),
        lambda x, y: x + y * x,
        lambda x, y: y * x + x,
    ],
    "mean": [
        lambda x, y: x.mean(1) + y.sum(),
        lambda x, y: x.mean(axis=1) + y.sum(),
        lambda x, y: F.avg_pool1d(x.mT, 3)[..., 0] + y.sum(),
        lambda x, y: F.adaptive_avg_pool1d(x.mT, 1)[..., 0] + y.sum(),
    ],
    "cast": [
        lambda x, y: x.to(y) + y,
        lambda x, y: x.type_as(y) + y,
        lambda x, y: x.double() + y,
        lambda x, y: x + y,
    ],
    "distance": [
        lambda x, y: torch.linalg.vector_norm(x - y, dim=-1),
        lambda x, y: (x - y).norm(dim=-1),
        lambda x, y: torch.norm(x - y, p=2, dim=-1),
    ],
    "largest": [
        lambda x, y: x.amax(1) + y.sum(),
        lambda x, y: x.max(dim=1).values + y.sum(),
        lambda x, y: x.topk(1, dim=1).values[:, 0] + y.sum(),
        lambda x, y: F.max_pool1d(x.mT, 3)[..., 0] + y.sum(),
    ],
}
PAIRS = [(name, i) for name, programs in SAME.items() for i in range(1, len(programs))]


@pytest.mark.parametrize(("name", "other"), PAIRS, ids=[f"{n} {i}" for n, i in PAIRS])
def test_equal_programs_get_equal_relevance(name: str, other: int) -> None:
    first, program = SAME[name][0], SAME[name][other]
    torch.testing.assert_close(program(X, Y), first(X, Y))
    for found, expected in zip(relevance_of(program), relevance_of(first), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_a_constant_tensor_takes_its_share_whatever_its_size() -> None:
    term = torch.tensor(0.7, dtype=torch.float64)
    expected = relevance_of(lambda x, y: x * y + term.expand(2, 3, 4))
    for same in (term, term.expand(1), term.expand(1, 1, 4)):
        found = relevance_of(lambda x, y, same=same: x * y + same)
        torch.testing.assert_close(found, expected)
    of_number = relevance_of(lambda x, y: x * y + 0.7)
    whole = doubles(2, 3, 4, seed=6)
    torch.testing.assert_close(of_number, [whole / 2, whole / 2])


def test_a_sample_beside_its_label_is_explained_as_among_others() -> None:
    labels = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def error(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        return ((x * y).sum((1, 2)) - labels) ** 2

    def relevance(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        program = Arguments((x, y), (labels,))
        with traced_forward(error, program, keep=TABLE.keep) as forward:
            seeds = {forward.tape.find(forward.output): torch.ones(len(x), dtype=x.dtype)}
            return propagate(forward.tape, seeds, TABLE, forward.values)[forward.values[0]]

    together = relevance(X, Y, labels)
    assert ((together.sum((1, 2)) > 0) & (together.sum((1, 2)) < 0.5)).all()
    for i in range(2):
        alone = relevance(X[i : i + 1], Y[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1])
