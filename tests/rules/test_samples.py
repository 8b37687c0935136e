"""Tokens picked from all samples, as by experts, are assigned to their samples."""

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


def with_weights_for_each_row(x: Tensor) -> Tensor:
    rows, experts = x.flatten(0, 1), chosen(x)
    order = experts.argsort(stable=True)
    out = torch.bmm(rows[order].unsqueeze(1), WEIGHT[experts[order]]).squeeze(1)
    out = out + BIAS[experts[order]]
    return torch.zeros_like(rows).index_add(0, order, out).unflatten(0, x.shape[:2]) + x


@pytest.mark.parametrize("experts", [expert_by_expert, with_weights_for_each_row])
def test_tokens_picked_out_of_all_samples_are_summed_up_by_sample(experts):
    x = doubles(SAMPLES, TOKENS, WIDTH, seed=3)
    counts = torch.stack([chosen(sample[None]).bincount(minlength=EXPERTS) for sample in x])
    assert len(counts.unique(dim=0)) > 1  # in unequal parts

    together = relevance_of(experts, x)
    alone = torch.cat([relevance_of(experts, sample[None]) for sample in x])

    torch.testing.assert_close(together, alone)


def rows_in_another_order(x: Tensor) -> Tensor:
    """The picked rows are as many as before, so that only the indices tell where samples went."""
    rows = x.flatten(0, 1)[torch.tensor([0, 5, 2, 3, 4, 1, 7, 6])]
    return rows.flip(-1) + rows * 2


def rows_of_several_samples(x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)[torch.tensor([0, 4, 3])]
    mixed = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64) @ rows
    return mixed + mixed.flip(-1)


def rows_that_constants_fill_up(x: Tensor) -> Tensor:
    rows = F.pad(x.flatten(0, 1)[torch.tensor([0, 4, 3])], (0, 0, 0, 2))
    return rows + rows.flip(-1)


@pytest.mark.parametrize(
    "mixing", [rows_in_another_order, rows_of_several_samples, rows_that_constants_fill_up]
)
def test_additions_of_rows_whose_samples_are_in_no_order_are_refused(mixing):
    with pytest.raises(UnsupportedOperationError, match="Explain the samples one by one"):
        relevance_of(mixing, doubles(2, 4, WIDTH))
