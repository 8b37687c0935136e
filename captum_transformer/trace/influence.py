"""Checks that there is one score per sample, and that it depends only on that sample."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.errors import InvalidTargetError, MixedSamplesError
from captum_transformer.trace.batch import Batch
from captum_transformer.trace.derivatives import derivatives
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value

if TYPE_CHECKING:
    from captum_transformer.trace.forward import TracedForward

# Derivatives of independent samples scale exactly, up to rounding by the order of sums.
_ROUNDING = 16
# The number of different weights of scores: powers of two, few enough for half precision.
_WEIGHTS = 4


def belongs_to_samples(value: Value) -> bool:
    """Whether it is certain that each score depends only on the sample of the same index.

    Raises:
        InvalidTargetError: if it is certain that the scores don't match the samples.
    """
    batch = value.batch
    if batch is None or value.coupling is not None:
        return False
    scores = value.shape.numel()
    if batch.is_whole and batch.axis.size == scores:
        return True
    if batch.of == 1:
        return True
    of = f"sample {batch.first}" if batch.axis.size == 1 else f"{batch.axis.size} of the samples"
    raise InvalidTargetError(
        f"The target selects {scores} scores of {of}, but one score of each of the {batch.of} "
        "samples is explained. The model's output must have the samples along dimension 0."
    )


def require_apart(forward: "TracedForward", scores: Tensor, coupling: Operation | None) -> None:
    """Raises an error if a score has a derivative at the inputs of another sample.

    Args:
        forward: a forward pass without rules, so that all gradients are the model's own.
        scores: one score per sample.
        coupling: the first operation that may mix samples, for the error message.

    Raises:
        MixedSamplesError: if the samples influence each other.
    """
    points = _points(forward)
    plain = _slopes(forward, scores, points)
    for digit in range(digits_of(len(scores))):
        weights = weights_of(len(scores), digit, scores.device)
        weighted = _slopes(forward, scores * weights.to(scores.dtype), points)
        for one, other, (_, batch) in zip(plain, weighted, points, strict=True):
            own = weights[batch.first : batch.last + 1, None].to(one.dtype)
            rounding = _ROUNDING * torch.finfo(one.dtype).eps * other.abs().amax(1)
            differs = (other - own * one).abs().amax(1) > rounding
            if truth(differs.any(), "whether samples influence each other"):
                mixed = batch.first + int(differs.nonzero()[0, 0])
                raise _mixed(_source(forward, scores, points, mixed), mixed, coupling)


def weights_of(samples: int, digit: int, device: torch.device) -> Tensor:
    """Returns a weight for each sample: two to the power of a digit of the sample's index."""
    places = torch.arange(samples, device=device)
    return torch.pow(2.0, places // _WEIGHTS**digit % _WEIGHTS)


def digits_of(samples: int) -> int:
    """Returns how many digits the indices of the samples have."""
    digits = 1
    while _WEIGHTS**digits < samples:
        digits += 1
    return digits


def _points(forward: "TracedForward") -> list[tuple[Any, Batch]]:
    """Returns where inputs, or embeddings of their token ids, enter the autograd graph."""
    known = [(edge, value) for edge, value in zip(forward.edges, forward.values, strict=True)]
    for operation in forward.tape.operations:
        if operation.kind is Kind.EMBEDDING and operation.traced()[0][1].holds_ids:
            known += [(operation.edge, output) for output in operation.outputs if output]
    points = []
    for edge, value in known:
        if edge is None:
            continue
        if value.batch is None or value.coupling is not None:
            raise MixedSamplesError(
                "The model rearranges token ids of several samples before it looks them up"
                f"{_through(value.coupling)}, so that the embeddings can't be assigned to "
                "samples. Explain one sample at a time (`internal_batch_size=1`)."
            )
        points.append((edge, value.batch))
    return points


def _slopes(
    forward: "TracedForward", scores: Tensor, points: Sequence[tuple[Any, Batch]]
) -> list[Tensor]:
    """Returns the derivatives of the sum of scores at each point, with one row per sample."""
    edges = [edge for edge, _ in points]
    slopes = derivatives(scores.sum(), edges, forward.tape.operations)
    rows = []
    for slope, (_, batch) in zip(slopes, points, strict=True):
        size = batch.axis.size
        if slope is None:
            rows.append(scores.new_zeros(size, 1))
        else:
            rows.append(slope.detach().reshape(batch.axis).transpose(0, 1).reshape(size, -1))
    return rows


def _source(
    forward: "TracedForward", scores: Tensor, points: Sequence[tuple[Any, Batch]], sample: int
) -> int:
    """Returns the index of a score that depends on another sample, or -1 if none is found."""
    for place, score in enumerate(scores):
        if place == sample:
            continue
        for slope, (_, batch) in zip(_slopes(forward, score, points), points, strict=True):
            if batch.first <= sample <= batch.last and slope[sample - batch.first].any():
                return place
    return -1


def _mixed(score: int, sample: int, coupling: Operation | None) -> MixedSamplesError:
    what = f"the score of sample {score} depends on sample {sample}{_through(coupling)}"
    return MixedSamplesError(
        f"The samples influence each other: {what}. Each sample's explanation would include parts "
        f"of the others' explanations. If this is intended, explain one sample "
        f"at a time "
        "(`internal_batch_size=1`). If not: attention of torch.nn takes the samples first only "
        "with `batch_first=True`, normalisation over the batch needs running statistics, and "
        "sums, softmax and rolls must name another dimension than that of the samples."
    )


def _through(coupling: Operation | None) -> str:
    """Returns the part of an error message that names the operation that may mix samples."""
    if coupling is None:
        return ""
    module = f" in {coupling.module}" if coupling.module else ""
    return f", through `{coupling.name}`{module}"
