"""Checks that the shares of each sample's score end in inputs of that sample."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.errors import MixedSamplesError
from captum_transformer.trace.influence import digits_of, weights_of
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value

# Shares of separate samples scale exactly, except for rounding from the order of sums.
_ROUNDING = 16
Shares = Mapping[Value, Tensor]


def require_own_samples(run: Callable[[Shares], Shares], seeds: Shares, arrived: Shares) -> None:
    """Raises an error if a share of one sample's score has reached another sample.

    This can happen even if each score depends on its own sample alone: where a difference of sums
    over several samples cancels out, the shares of these sums do not.

    Args:
        run: carries shares from where they start to the wanted values.
        seeds: the shares to start with, of one score for each sample.
        arrived: the shares that have reached the wanted values.

    Raises:
        MixedSamplesError: if a share has reached another sample.
    """
    samples = max((value.batch.of for value in arrived if value.batch is not None), default=1)
    ((start, share), *more) = seeds.items()
    if more or start.coupling is None or samples == 1 or start.shape.numel() != samples:
        return
    for digit in range(digits_of(samples)):
        weights = weights_of(samples, digit, share.device).to(share.dtype)
        weighted = run({start: share * weights.reshape(share.shape)})
        for value, plain in arrived.items():
            if value.batch is None or value.coupling is not None:
                continue
            axis, first, last = value.batch.axis, value.batch.first, value.batch.last
            one, other = plain.reshape(axis), weighted[value].reshape(axis)
            off = other - one * weights[first : last + 1, None]
            rounding = _ROUNDING * torch.finfo(one.dtype).eps * other.abs().amax((0, 2))
            mixed = off.abs().amax((0, 2)) > rounding
            if truth(mixed.any(), "whether a sample would get a share of another's score"):
                raise _mixed(first + int(mixed.nonzero()[0, 0]), start.coupling)


def _mixed(sample: int, coupling: Operation) -> MixedSamplesError:
    module = f" in {coupling.module}" if coupling.module else ""
    return MixedSamplesError(
        f"Sample {sample} would get a share of another sample's score. From `{coupling.name}`"
        f"{module} on it is not known which entries belong to which sample, and shares of a sum "
        "are divided among all its terms, also where what other samples add is taken away again, "
        "as in differences of a cumulative sum, or is the same for all of them, as a learned token "
        "that was picked from another sample. Explain one sample at a time "
        "(`internal_batch_size=1`), or use ConservativeLRP or AttnLRP."
    )
