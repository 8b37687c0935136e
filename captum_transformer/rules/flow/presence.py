"""Which entries of a value a share may go to: those that hold its source, and no constants."""

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captum_transformer.rules.flow.sources import Sources, receiving
from captum_transformer.trace.features import is_linear_layer
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.views import views_of

ADDITIONS = frozenset({Kind.ADD, Kind.SUB})
_WHOLE = frozenset({Kind.AS_COMPLEX, Kind.AS_REAL})


def signal(operand: Operand, like: Tensor, *, weighted: bool = False) -> Tensor | None:
    """How much of the signal each entry carries: nothing where a constant has taken its place.

    Padding takes no share of what is made of it and a signal, as in convolutions that pad by
    themselves: where windows or merged tokens reach over the edge of an image, what lies within
    stands for all.

    Args:
        operand: what is divided.
        like: gives the precision.
        weighted: whether factors count, of which masks make terms of a sum disappear.

    Returns:
        None if all entries are of the signal alike.
    """
    value = operand.value
    operation = None if value is None else value.operation
    if value is None or operation is None or operation.attention is not None:
        return None
    traced = operation.traced()
    if weighted and operation.kind is Kind.SUM_AT_INDICES:
        parts = [signal(source, like, weighted=True) for source, _ in traced]
        with torch.no_grad():
            return at_indices(operation, _filled(operation, parts, like))
    if operation.kind in MOVES:
        parts = [signal(source, like, weighted=weighted) for source, _ in traced]
        if not has_constants(operation) and all(part is None for part in parts):
            return None
        return _carried(operation, value, parts, like)
    if operation.kind not in BY_ENTRY or len(traced) != 1:
        return None
    part = signal(traced[0][0], like, weighted=weighted)
    scale = factors(operation, like, weighted=weighted)
    if scale is not None:
        part = scale if part is None else part * scale
    return None if part is None else part.expand(value.shape)


def factors(operation: Operation, like: Tensor, *, weighted: bool = False) -> Tensor | None:
    """What constants make of a signal that they multiply: nothing where they are zero."""
    if operation.kind is not Kind.MUL:
        return None
    given = [operand.tensor for operand in operation.operands if operand.value is None]
    scales = [(t if weighted else t != 0).to(like.dtype).abs() for t in given]
    return functools.reduce(operator.mul, scales) if scales else None


def masked(value: Value, like: Tensor) -> Tensor | None:
    """Zero where a constant factor has masked a value, and one elsewhere; None without any."""
    found, operation = None, value.operation
    while operation is not None and operation.kind in BY_ENTRY and len(operation.traced()) == 1:
        scale = factors(operation, like)
        if scale is not None:
            found = scale if found is None else found * scale
        operation = operation.traced()[0][1].operation
    return found


def at_indices(operation: Operation, weights: Sequence[Tensor]) -> Tensor:
    """The weight of each sum of a sum at indices; the constant that they are added to has none."""
    # Terms that are subtracted are terms.
    others = {name: value for name, value in operation.kwargs.items() if name != "alpha"}
    added = replace(operation, kwargs=others)
    total: Tensor = added.replay(weights)[0]
    with torch.no_grad():
        constant: Tensor = added.replay([torch.zeros_like(weight) for weight in weights])[0]
    return total - constant


class Terms:
    """How many terms of each entry hold a source, where signals were joined or added.

    Args:
        sources: what each value holds.
        like: gives the precision.
    """

    def __init__(self, sources: Sources, like: Tensor) -> None:
        self._sources = sources
        self._like = like
        self._counts: dict[tuple[Value, int, bool], Tensor | int] = {}

    def holding(self, value: Value, key: int) -> list[tuple[int, Tensor | None]]:
        """Divides sources into those that the same features of a value hold, with where they lie.

        None for those that all features hold.
        """
        partly = key & self._partly_held(value)
        found: list[tuple[int, Tensor | None]] = [(key & ~partly, None)] if key & ~partly else []
        for alike in _divided(partly, self._sets(value, partly, counting=False)):
            terms = self._terms(value, alike, counting=False)
            found.append((alike, None if isinstance(terms, int) else (terms != 0).to(terms.dtype)))
        return found

    def counted(
        self, values: list[Value], key: int, operation: Operation
    ) -> Iterator[tuple[int, Sequence[Tensor | int]]]:
        """Divides sources that several signals share, with the terms that each has of them.

        What is multiplied is one term each.
        """
        added = operation.kind in ADDITIONS
        sets = [self._sources.held(value) for value in values]
        if added:
            sets = [held for value in values for held in self._sets(value, key, counting=True)]
        uniform: dict[tuple[int, ...], int] = {}
        for alike in _divided(key, sets):
            held = [int(bool(self._sources.held(value) & alike)) for value in values]
            terms = (
                [self._terms(value, alike, counting=True) for value in values] if added else held
            )
            numbers = tuple(term for term in terms if isinstance(term, int))
            if len(numbers) < len(terms):
                yield alike, terms
            else:
                uniform[numbers] = uniform.get(numbers, 0) | alike
        yield from ((alike, list(numbers)) for numbers, alike in uniform.items())

    def _partly_held(self, value: Value) -> int:
        held = self._sources.of(value)
        return held.by_features | held.by_stacked

    def _parts(self, value: Value, key: int, *, counting: bool) -> list[tuple[Value, int]]:
        """The values that an entry's terms are found in, each with the sources to look for."""
        operation = value.operation
        if operation is None or key & 1 << value.index or operation.attention is not None:
            return []
        if not counting and not key & (self._partly_held(value) | self._sources.joined(value)):
            return []
        values = [source for _, source in receiving(operation)]
        if self._crosses(value, key):
            return [(values[0], key)]
        if operation.kind in MOVES or (operation.kind in BY_ENTRY and len(values) == 1):
            return [(source, key) for source in values]
        junction = self._sources.junction(operation)
        if junction is not None and (
            operation.kind in ADDITIONS if counting else operation.kind in BY_ENTRY
        ):
            pairs = zip(values, junction.whole, strict=True)
            parts = [(source, key & (whole | junction.shared)) for source, whole in pairs]
            return [(source, part) for source, part in parts if part]
        return []

    def _crosses(self, value: Value, key: int) -> bool:
        """Whether a value is made of joined signals by a layer that they go through side by side.

        Then it is one term in each of them, whatever that is a sum of.
        """
        operation = value.operation
        apart = key & self._sources.of(value).by_stacked
        return bool(apart) and operation is not None and is_linear_layer(operation)

    def groups(self, value: Value, key: int) -> list[int]:
        """The sets of sources that entries of a value hold."""
        walk = self._walk(value, key, counting=False)
        ends = [step for step in walk if not self._parts(*step, counting=False)]
        return list(dict.fromkeys(self._sources.held(end) & of for end, of in ends))

    def _sets(self, value: Value, key: int, *, counting: bool) -> list[int]:
        """The sets of sources that are told apart on the way to a value's terms."""
        walk = self._walk(value, key, counting=counting)
        return [found for end, of in walk for found in (self._sources.held(end), of)]

    def _walk(self, value: Value, key: int, *, counting: bool) -> list[tuple[Value, int]]:
        """All values on the way to a value's terms, each with the sources to look for."""
        found, stack = dict[tuple[Value, int], None](), [(value, key)]
        while stack:
            step = stack.pop()
            if step not in found:
                found[step] = None
                stack += self._parts(*step, counting=counting)
        return list(found)

    def _terms(self, value: Value, key: int, *, counting: bool) -> Tensor | int:
        """How many terms of each entry hold some sources; a number if all entries are alike."""
        if not key & self._sources.held(value):
            return 0
        # A value that was written into entry by entry is met in as many ways as there are sums.
        step = value, key, counting
        if step not in self._counts:
            self._counts[step] = self._summed(value, key, counting=counting)
        return self._counts[step]

    def _summed(self, value: Value, key: int, *, counting: bool) -> Tensor | int:
        parts = self._parts(value, key, counting=counting)
        operation = value.operation
        if operation is None or not parts:
            return 1
        crosses = self._crosses(value, key)
        counting = counting and not crosses
        terms = [self._terms(source, of, counting=counting) for source, of in parts]
        if crosses:
            return _through_layer(operation, value, terms[0])
        if operation.kind in MOVES:
            first, constants = terms[0], has_constants(operation)
            if not constants and isinstance(first, int) and all(term is first for term in terms):
                return first
            return _carried(operation, value, terms, self._like)
        total = sum(terms)
        scale = factors(operation, self._like)
        if scale is not None:
            total = total * scale
        if isinstance(total, int) or total.shape == value.shape:
            return total
        return total.expand(value.shape)


def _through_layer(operation: Operation, value: Value, terms: Tensor | int) -> Tensor | int:
    """One for each token, after a linear layer, whose features before it hold some sources."""
    product, ((operand, _),) = operation.contraction(), operation.traced()
    if isinstance(terms, int) or product is None:
        return int(bool(terms)) if isinstance(terms, int) else 1
    before, after = product.of(operand), product.output
    kept = "".join(letter for letter in after if letter in before)
    held = torch.einsum(f"{before}->{kept}", (terms != 0).to(terms.dtype)) > 0
    sizes = [1 if letter not in before else -1 for letter in after]
    shape = [n if size < 0 else 1 for n, size in zip(value.shape, sizes, strict=True)]
    return held.to(terms.dtype).reshape(shape).expand(value.shape)


def has_constants(operation: Operation) -> bool:
    """Whether a rearrangement may have entries, or leave some out, as constants say."""
    if operation.kind is Kind.PAD:
        # Models whose windows may reach over the edge pad by no entries where they don't.
        return any(width > 0 for width in operation.argument("pad"))
    if operation.kind in (Kind.CONCATENATE, Kind.STACK):
        return len(operation.operands) > len(operation.traced())
    return operation.kind not in _WHOLE and views_of(operation) is None


def _divided(key: int, sets: list[int]) -> list[int]:
    """Divides a set by other sets into parts that lie wholly within or without each of them."""
    parts = [key] if key else []
    for other in sets:
        halves = [half for part in parts for half in (part & other, part & ~other)]
        parts = [half for half in halves if half]
    return parts


def _filled(
    operation: Operation, parts: Sequence[Tensor | int | None], like: Tensor
) -> list[Tensor]:
    """The same as tensors that lie as an operation's signals do; ones where entries are alike."""
    filled = [source.blank(like.dtype).fill_(1) for _, source in operation.traced()]
    for place, (whole, part) in enumerate(zip(filled, parts, strict=True)):
        if isinstance(part, Tensor):
            # An expanded tensor has no room for entries that differ.
            filled[place] = part if 0 in whole.stride() else whole.copy_(part)
        elif part is not None:
            whole.fill_(part)
    return filled


def _carried(
    operation: Operation, value: Value, parts: Sequence[Tensor | int | None], like: Tensor
) -> Tensor:
    """What the entries of a rearrangement bring along; constants among them nothing."""
    place, given_parts = operation.outputs.index(value), _filled(operation, parts, like)
    with torch.no_grad():
        given: Tensor = operation.replay(given_parts)[place]
        absent = operation.replay([torch.zeros_like(part) for part in given_parts])[place]
        return given.masked_fill(given == absent, 0.0)


def constant_entries(operation: Operation, like: Tensor) -> list[Tensor | None]:
    """For each output of a rearrangement one where a constant is, and zero elsewhere."""
    if not has_constants(operation):
        return []
    # What is filled in, such as the lowest number there is, must fit the precision.
    dtypes = [v.dtype for _, v in operation.traced() if v.dtype.is_floating_point]
    like = like.new_empty((), dtype=functools.reduce(torch.promote_types, dtypes, like.dtype))
    ones = [1] * len(operation.traced())
    return [o if o is None else 1 - _carried(operation, o, ones, like) for o in operation.outputs]
