"""Sums sample by sample where the entries of the samples lie in no order."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.calling import Arguments
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.propagate import propagate
from captum_transformer.rules.relevance import TABLE
from captum_transformer.trace import traced_forward

SAMPLES, TOKENS, WIDTH, EXPERTS = 3, 4, 6, 3


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relevance_of(function, x: Tensor) -> Tensor:
    """Of the sum over all outputs."""
    with traced_forward(function, Arguments((x,)), keep=TABLE.keep) as forward:
        value = forward.tape.find(forward.output)
        seeds = {value: torch.ones_like(forward.output).detach()}
        return propagate(forward.tape, seeds, TABLE, forward.values)[forward.values[0]]


WEIGHT, BIAS = doubles(EXPERTS, WIDTH, WIDTH, seed=1), doubles(EXPERTS, WIDTH, seed=2)


def chosen(x: Tensor) -> Tensor:
    """The expert of each token: which one depends on the token alone."""
    return (x[..., 0] * 10).long().remainder(EXPERTS).detach().flatten()


def expert_by_expert(x: Tensor) -> Tensor:
    rows, experts = x.flatten(0, 1), chosen(x)
    result = torch.zeros_like(rows)
    for expert in experts.unique():
        (tokens,) = torch.where(experts == expert)
        out = rows[tokens] @ WEIGHT[expert] + BIAS[expert]
        result.index_add_(0, tokens, F.relu(out[..., ::2]).repeat(1, 2) * 2.0)
    return result.unflatten(0, x.shape[:2]) + x


def sorted_by_expert(x: Tensor) -> Tensor:
    rows, experts = x.flatten(0, 1), chosen(x)
    order = experts.argsort(stable=True)
    picked = rows[order]
    parts = picked.split(torch.bincount(experts, minlength=EXPERTS).tolist())
    out = torch.cat([part @ weight for part, weight in zip(parts, WEIGHT, strict=True)])
    out = out + BIAS[experts[order]]
    return out[order.argsort()].unflatten(0, x.shape[:2]) + x


def with_weights_for_each_row(x: Tensor) -> Tensor:
    rows, experts = x.flatten(0, 1), chosen(x)
    order = experts.argsort(stable=True)
    out = torch.bmm(rows[order].unsqueeze(1), WEIGHT[experts[order]]).squeeze(1)
    out = out + BIAS[experts[order]]
    return torch.zeros_like(rows).index_add(0, order, out).unflatten(0, x.shape[:2]) + x


def biased_when_summed(x: Tensor) -> Tensor:
    """The samples are told apart behind a sum at indices."""
    rows, experts = x.flatten(0, 1), chosen(x)
    order = experts.argsort(stable=True).repeat(2)
    return (torch.zeros_like(rows).index_add(0, order, rows[order]) + BIAS[0]).unflatten(
        0, x.shape[:2]
    )


@pytest.mark.parametrize(
    "experts", [expert_by_expert, sorted_by_expert, with_weights_for_each_row, biased_when_summed]
)
def test_tokens_picked_out_of_all_samples_are_summed_up_by_sample(experts):
    x = doubles(SAMPLES, TOKENS, WIDTH, seed=3)
    counts = torch.stack([chosen(sample[None]).bincount(minlength=EXPERTS) for sample in x])
    assert len(counts.unique(dim=0)) > 1  # in unequal parts

    together = relevance_of(experts, x)
    alone = torch.cat([relevance_of(experts, sample[None]) for sample in x])

    torch.testing.assert_close(together, alone)


def test_tokens_in_another_order_are_not_taken_for_samples_in_theirs():
    """The picked rows are as many as before, so that only the indices tell where samples went."""
    order = torch.tensor([0, 5, 2, 3, 4, 1, 7, 6])
    x = doubles(2, 4, WIDTH, seed=4)

    def shuffled(x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)[order]
        return (rows.flip(-1) + rows * 2)[order.argsort()].unflatten(0, (2, 4))

    def plain(x: Tensor) -> Tensor:
        return x.flip(-1) + x * 2

    torch.testing.assert_close(relevance_of(shuffled, x), relevance_of(plain, x))


def test_rows_of_several_samples_are_refused():
    def mixing(x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)[torch.tensor([0, 4, 3])]
        mixed = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64) @ rows
        return mixed + mixed.flip(-1)

    with pytest.raises(UnsupportedOperationError, match="Explain the samples one by one"):
        relevance_of(mixing, doubles(2, 4, WIDTH))


def test_rows_that_constants_fill_up_are_refused():
    def padded(x: Tensor) -> Tensor:
        rows = F.pad(x.flatten(0, 1)[torch.tensor([0, 4, 3])], (0, 0, 0, 2))
        return rows + rows.flip(-1)

    with pytest.raises(UnsupportedOperationError, match="Explain the samples one by one"):
        relevance_of(padded, doubles(2, 4, WIDTH))
