"""Which entries of a value a share may go to: those that hold its source, and no constants."""

import functools
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_transformer.rules.flow.sources import Sources, aligned
from captum_transformer.rules.flow.terms import (
    ADDITIONS,
    Count,
    Terms,
    has_constants,
    receiving,
)
from captum_transformer.trace.axis import runs_along
from captum_transformer.trace.dimensions import passage
from captum_transformer.trace.features import feature_dims
from captum_transformer.trace.kinds import AS_OTHERS, BY_ENTRY, MOVES, Kind
from captum_transformer.trace.numeric import dtype_with_operands
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.walks import earliest_first, found_behind


def signal(operand: Operand, like: Tensor, *, weighted: bool = False) -> Tensor | None:
    """Returns how much of the signal each entry carries: zero where a constant has replaced it.

    Padding gets no share, as in convolutions with a `padding` argument: where windows or merged
    tokens reach over the edge of an image, the entries inside the image get the whole share.

    Args:
        operand: the operand whose entries are asked for.
        like: a tensor of the dtype to compute in.
        weighted: whether the sizes of factors count, or only where they are zero.

    Returns:
        The weight of each entry, or None if all entries carry the signal alike.
    """
    if operand.value is None:
        return None

    def sources(value: Value) -> list[Value]:
        operation = value.operation
        if operation is None or operation.attention is not None:
            return []
        found = [source for _, source in operation.traced()]
        adds = weighted and operation.kind is Kind.SUM_AT_INDICES
        carries = operation.kind in MOVES or (operation.kind in BY_ENTRY and len(found) == 1)
        return found if adds or carries else []

    values = earliest_first(operand.value, sources)
    last_readers = {source: value for value in values for source in sources(value)}
    known: dict[Value, Tensor | None] = {}
    for value in values:
        parts = [known[source] for source in sources(value)]
        known[value] = _signal(value, parts, like, weighted=weighted) if parts else None
        for source in sources(value):
            if last_readers[source] is value:
                known[source] = None  # frees its memory: chains of writes may be long
    return known[operand.value]


def _signal(
    value: Value, parts: list[Tensor | None], like: Tensor, *, weighted: bool
) -> Tensor | None:
    """Returns how much of the signal a value's entries carry, given those of its sources."""
    operation = value.operation
    if operation is None:
        return None
    if operation.kind is Kind.SUM_AT_INDICES and weighted:
        with torch.no_grad():
            return at_indices(operation, _filled(operation, parts, like))
    if operation.kind in MOVES:
        if not has_constants(operation) and all(part is None for part in parts):
            return None
        return _carried(operation, value, parts, like)
    (part,) = parts
    scale = factors(operation, like, weighted=weighted)
    if scale is not None:
        part = scale if part is None else part * scale
    return None if part is None else part.expand(value.shape)


def factors(operation: Operation, like: Tensor, *, weighted: bool = False) -> Tensor | None:
    """Returns the weight that constant factors give each entry, or None if there are none."""
    if operation.kind is not Kind.MUL:
        return None
    given = [operand.tensor for operand in operation.operands if operand.value is None]
    # A boolean factor weighs one or zero.
    sizes = [t.abs() if weighted and t.dtype != torch.bool else t != 0 for t in given]
    scales = [size.to(like.dtype) for size in sizes]
    return functools.reduce(operator.mul, scales) if scales else None


def at_indices(operation: Operation, weights: Sequence[Tensor]) -> Tensor:
    """Returns the weight of each sum at indices, without the constant that terms are added to."""
    # Subtracted terms count like added ones.
    others = {name: value for name, value in operation.kwargs.items() if name != "alpha"}
    added = operation.changed(kwargs=others)
    total: Tensor = added.replay(weights)[0]
    with torch.no_grad():
        constant: Tensor = added.replay([torch.zeros_like(weight) for weight in weights])[0]
    return total - constant


class Counts:
    """Computes how many terms of each entry of a value hold some sources.

    Args:
        sources: what each value holds.
        like: a tensor of the dtype to compute in.
    """

    def __init__(self, sources: Sources, like: Tensor) -> None:
        self._sources = sources
        self._like = like
        self._known: dict[Terms, Tensor | int] = {}

    def __call__(self, terms: Count) -> Tensor | int:
        """Returns the number for each entry, or one number if all entries are alike."""
        if isinstance(terms, int):
            return terms
        # A value that was written into entry by entry is met in as many ways as there are sums.
        if terms not in self._known:
            for part in earliest_first(terms, self._unknown_parts):
                self._known[part] = self._counted(part)
        return self._known[terms]

    def _unknown_parts(self, terms: Terms) -> list[Terms]:
        return [of for of in terms.of if isinstance(of, Terms) and of not in self._known]

    def _counted(self, terms: Terms) -> Tensor | int:
        value, of = terms.value, [self(part) for part in terms.of]
        operation = value.operation
        if operation is None:
            return 1
        if operation.kind in MOVES:
            return _carried(operation, value, of, self._like)
        if operation.kind not in BY_ENTRY:
            pairs = zip(receiving(operation), of, strict=True)
            seen = [_seen(operation, operand, value, part) for (operand, _), part in pairs]
            return functools.reduce(operator.or_, seen).to(self._like.dtype)
        total = sum(of)
        scale = factors(operation, self._like)
        if scale is not None:
            total = total * scale
        return total if isinstance(total, int) else total.expand(value.shape)

    def holding(
        self, value: Value, key: int, operation: Operation
    ) -> list[tuple[int, Tensor | None]]:
        """Groups sources by the entries of a value that hold them, with a mask of these entries.

        The mask is None for sources that all entries hold, as far as the operation mixes entries.
        """
        alike, found = 0, list[tuple[int, Tensor | None]]()
        for sources, terms in self._sources.of(value).terms:
            if not key & sources:
                continue
            apart = isinstance(terms, Terms) and _mixes(operation, value, terms)
            number = self(terms) if apart else 1
            if isinstance(number, Tensor):
                found.append((key & sources, (number != 0).to(number.dtype)))
            else:
                alike |= key & sources
        return [(alike, None), *found] if alike else found

    def counted(
        self, operation: Operation, key: int
    ) -> Iterator[tuple[int, Sequence[Tensor | int]]]:
        """Groups sources that several signals share, with the number of terms in each signal.

        Signals that are multiplied or compared are one term each.
        """
        signals = receiving(operation)
        helds = [self._sources.of(value) for _, value in signals]
        uniform: dict[tuple[Tensor | int, ...], int] = {}
        output = next(value for value in operation.outputs if value is not None)
        for terms, alike in aligned(helds, key).items():
            numbers = tuple(map(self, terms))
            if operation.kind not in ADDITIONS:
                numbers = tuple(
                    _seen(operation, operand, output, number).to(self._like.dtype)
                    if isinstance(number, Tensor)
                    else int(bool(number))
                    for (operand, _), number in zip(signals, numbers, strict=True)
                )
            if any(isinstance(number, Tensor) for number in numbers):
                yield alike, numbers
            else:
                uniform[numbers] = uniform.get(numbers, 0) | alike
        yield from ((alike, numbers) for numbers, alike in uniform.items())

    def groups(self, value: Value, key: int) -> list[int]:
        """Returns the sets of sources that a value's entries hold, where signals were joined."""

        def parts(value: Value) -> list[Value] | int:
            held, operation = self._sources.of(value), value.operation
            terms = (t for of, t in held.terms if key & of and isinstance(t, Terms))
            if operation is None or not any(t.joined or t.apart for t in terms):
                return held.sources & key
            return [source for _, source in receiving(operation)]

        return list(dict.fromkeys(found_behind(value, parts)))


def _mixes(operation: Operation, value: Value, terms: Terms) -> bool:
    """Returns whether an operation combines entries when only some of them hold the sources."""
    if operation.attention is not None:
        return terms.by_features  # it divides shares among tokens
    if operation.kind in BY_ENTRY:
        return False
    operand = next(operand for operand, source in operation.traced() if source is value)
    mixed = passage(operation, operand).mixed
    stacked = terms.axes is None or any(
        runs_along(axis, value.shape, dim) for axis in terms.axes for dim in mixed
    )
    of_features = value.features is None or not set(mixed).isdisjoint(feature_dims(value))
    return (terms.by_stacked and stacked) or (terms.by_features and of_features)


def _seen(operation: Operation, operand: Operand, output: Value, terms: Tensor | int) -> Tensor:
    """Returns for each output entry whether it is made of operand entries that hold sources."""
    if isinstance(terms, int):
        return torch.full(output.shape, bool(terms), device=output.device)
    to, mixed = passage(operation, operand, len(output.shape))
    gone = [dim for dim, place in enumerate(to) if place is None]
    held, summed = terms != 0, [*{*mixed, *gone}]
    if summed:
        held = held.sum(summed, keepdim=True) != 0
    order = sorted((place, dim) for dim, place in enumerate(to) if place is not None)
    sizes = {place: held.shape[dim] for place, dim in order}
    shape = [sizes.get(place, 1) for place in range(len(output.shape))]
    return held.permute(*gone, *(dim for _, dim in order)).reshape(shape).expand(output.shape)


def _filled(
    operation: Operation, parts: Sequence[Tensor | int | None], like: Tensor
) -> list[Tensor]:
    """Returns the parts as tensors laid out like the operation's signals, with ones for None."""
    filled = [source.blank(like.dtype).fill_(1) for _, source in operation.traced()]
    for place, (whole, part) in enumerate(zip(filled, parts, strict=True)):
        if isinstance(part, Tensor):
            # An expanded tensor has no room for entries that differ.
            filled[place] = part.to(like.dtype) if 0 in whole.stride() else whole.copy_(part)
        elif part is not None:
            whole.fill_(part)
    return filled


def _carried(
    operation: Operation, value: Value, parts: Sequence[Tensor | int | None], like: Tensor
) -> Tensor:
    """Moves the parts of signals as the operation moves entries; constants get zero."""
    if operation.kind in AS_OTHERS:
        # The real and the imaginary part of a complex number have one number in common.
        (part,) = _filled(operation, parts, like)
        both = operation.kind is Kind.AS_COMPLEX
        return part.amax(-1) if both else torch.stack([part, part], -1)
    wide = like.new_empty((), dtype=dtype_with_operands(operation, like.dtype))
    place, given_parts = operation.outputs.index(value), _filled(operation, parts, wide)
    with torch.no_grad():
        given: Tensor = operation.replay(given_parts)[place]
        absent = operation.replay([torch.zeros_like(part) for part in given_parts])[place]
        return given.masked_fill(given == absent, 0.0).to(like.dtype)


def constant_entries(operation: Operation, like: Tensor) -> list[Tensor | None]:
    """Returns a mask for each output of a rearrangement: one at constants, zero elsewhere."""
    if not has_constants(operation):
        return []
    ones = [1] * len(operation.traced())
    return [o if o is None else 1 - _carried(operation, o, ones, like) for o in operation.outputs]
