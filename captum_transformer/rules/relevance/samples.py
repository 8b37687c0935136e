"""Which sample each entry of a value belongs to, where no axis of it says so.

Experts pick the tokens that are routed to them out of all samples, in unequal parts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_transformer.rules.relevance.linear import without_bias
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.features import chooses_features
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operation, Value

_SUMS = frozenset({Kind.PRODUCT, Kind.SUM, Kind.MEAN, Kind.SUM_AT_INDICES})
# Of sums of samples' numbers in double precision, far below the part of one foreign term.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Numbered:
    """The number of each entry's sample, in whatever order the entries lie.

    Where relevance is summed up sample by sample it serves as an `Axis` does.

    Attributes:
        numbers: one for each entry of a value.
        size: how many samples there are.
    """

    numbers: Tensor
    size: int

    def total(self, tensor: Tensor) -> Tensor:
        """Sums over the entries of each sample: ``(size,)``."""
        return tensor.new_zeros(self.size).index_add(0, self.numbers.flatten(), tensor.flatten())

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """One value per sample, at each of its entries."""
        return values[self.numbers].reshape(shape)


def samples_of(value: Value, device: torch.device) -> Axis | Numbered | None:
    """How to sum up the entries of each sample.

    None if an entry belongs to no sample or to several, or if that can't be followed.
    """
    if value.samples is not None:
        return value.samples
    operations: dict[int, Operation] = {}
    known: dict[Value, Tensor] = {}
    pending, size = [value], 0
    while pending:
        current = pending.pop()
        operation = current.operation
        if current.samples is not None:
            size = current.samples.size
            numbers = torch.arange(size, dtype=torch.float64, device=device)
            known[current] = current.samples.spread(numbers, current.shape)
        elif operation is None:
            return None
        elif operation.index not in operations:
            operations[operation.index] = operation
            pending += [source for _, source in operation.traced()]
    for index in sorted(operations):
        operation = operations[index]
        sources = [_laid_out(known[source], source) for _, source in operation.traced()]
        outputs = _followed(operation, sources)
        if outputs is None:
            return None
        for output, found in zip(operation.outputs, outputs, strict=True):
            if output is not None:
                known.setdefault(output, found)
    return Numbered(known[value].round().long(), size)


def _laid_out(numbers: Tensor, value: Value) -> Tensor:
    """Numbers with the strides of a value, so that they can be viewed as it is."""
    if 0 in value.stride:
        return numbers.contiguous()
    return value.blank(numbers.dtype).copy_(numbers)


def _followed(operation: Operation, numbers: list[Tensor]) -> list[Tensor] | None:
    """The samples' numbers at an operation's outputs, from those at its operands."""
    kind = operation.kind
    if kind in MOVES:
        moved, next_ones = operation.replay(numbers), operation.replay([n + 1 for n in numbers])
        # Constants in between belong to no sample.
        are_samples = all(torch.equal(m + 1, n) for m, n in zip(moved, next_ones, strict=True))
        return moved if are_samples else None
    output = operation.outputs[0]
    if output is None or (len(operation.outputs) > 1 and not chooses_features(operation)):
        return None
    if _of_rows(operation) or chooses_features(operation):
        of_token = numbers[0][..., :1]
        same = torch.equal(numbers[0], of_token.expand_as(numbers[0]))
        return [of_token.expand(output.shape)] * len(operation.outputs) if same else None
    if kind in BY_ENTRY:
        spread = [n.expand(output.shape) for n in numbers]
        return spread[:1] if all(torch.equal(n, spread[0]) for n in spread) else None
    if len(numbers) == 1 and kind in _SUMS:
        return _of_terms(operation, numbers[0])
    return None


def _of_rows(operation: Operation) -> bool:
    """Whether it multiplies each row of a signal by the same matrix."""
    product = operation.contraction()
    if product is None or len(operation.traced()) != 1:
        return False
    ((operand, _),) = operation.traced()
    return product.of(operand)[:-1] == product.output[:-1] and len(product.summed(operand)) == 1


def _of_terms(operation: Operation, numbers: Tensor) -> list[Tensor] | None:
    """The number that all terms of each sum have: their mean, if their variance is zero."""
    if operation.kind is Kind.PRODUCT:
        operation = without_bias(operation, torch.ones_like)
    blank, ones = torch.zeros_like(numbers), torch.ones_like(numbers)
    none, count, total, squares = (
        operation.replay([point])[0] for point in (blank, ones, numbers, numbers.square())
    )
    count, total, squares = count - none, total - none, squares - none
    foreign = (squares * count - total.square()).abs() > _ROUNDING * squares * count
    if not count.all() or foreign.any():
        return None
    return [total / count]
