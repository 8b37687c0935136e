"""Where the factors of a product meet: which of them were made of the same entry of one value.

In ``b * a * sigmoid(a)`` an activation of ``a`` is taken apart by the product that is in between.
Entries may be moved, masked, chosen or written into other tensors on their way, so they are
labelled where their ways part, and the labels take all these ways: what moves entries is run on
labels instead.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import combinations, product
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.calling.reading import numbers
from captum_transformer.trace.axis import View
from captum_transformer.trace.gates import MOVED, are_of_one_entry, works_by_entry
from captum_transformer.trace.kinds import Form, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.quotients import is_gate_by_formula
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of

# Labels are whole numbers from here on, larger than what models mask with or count, and negative
# behind an activation. This one is for what has no single entry; constants have zero.
_SEVERAL = 2.0**52
_PRODUCTS = frozenset({Kind.MUL, Kind.DIV, Kind.PRODUCT})
_SUMS = frozenset({Kind.ADD, Kind.SUB, Kind.MAXIMUM})
_ON = _PRODUCTS | _SUMS | {Kind.COPY, Kind.HOMOGENEOUS}
# A product, as the labels of each of its factors; a value is a sum of such.
Term = tuple[Tensor, ...]


class Meeting(NamedTuple):
    """How the factors of a product meet.

    Attributes:
        is_whole: where several are signals they are of one and the same entry: an activation.
        is_split: in some entry an activation meets the signal that it is of, and others.
        is_gate: in some entry an activation meets the signal that it is of.
        lacking: the factors that are constants in some entry where others are none.
    """

    is_whole: bool = False
    is_split: bool = False
    is_gate: bool = False
    lacking: tuple[Operand, ...] = ()

    @property
    def why_refused(self) -> str:
        """Why rules for products, or for activations, do not fit."""
        if self.is_split:
            return (
                "it multiplies another signal with an activation that is written in several steps, "
                "and the rule is for the whole"
            )
        return "it is an activation of one signal in some entries, and a product in others"


def meeting(operation: Operation) -> Meeting | None:
    """How the factors of an entry-wise product of several signals meet; None if it is no such."""
    factors = {o: value for o, value in operation.traced() if o.role is not Role.BIAS}
    values = list(factors.values())
    if len(values) < 2 or operation.kind not in _PRODUCTS or not works_by_entry(operation):
        return None
    if are_of_one_entry(*values):
        return Meeting(is_whole=True)
    shared, between = _shared(values)
    if not shared or _lie_apart(values, shared):
        return Meeting()
    labels = _labelled(shared, between)
    # An entry that is repeated for several others is more than that of one of them.
    repeats = len({value.shape for value in values}) > 1 or any(map(_repeats, between))
    terms = {operand: _terms(value, labels) for operand, value in factors.items()}
    return _met(terms, may_be_whole=not repeats)


def _goes_on(value: Value) -> bool:
    """Whether a value is made of others entry by entry, or of moved entries.

    A sum of signals is one of its own: followed into its terms, a recurrence would have no end.
    """
    made = value.operation
    if made is None or value.dtype.is_complex or made.arguments.get("reduce") is not None:
        return False
    if made.kind in _SUMS and len(made.traced()) > 1 and not any(map(_is_filled, made.traced())):
        return False
    return made.kind in MOVED or works_by_entry(made)


def _is_filled(traced: tuple[Operand, Value]) -> bool:
    """Whether some of its entries may be constants, which others are added to."""
    _, value = traced
    made = value.operation
    return made is not None and made.kind in MOVED and view_of(made, value) is None


def _may_repeat(made: Operation) -> bool:
    """Whether it may show one entry several times, as where values have been joined before it."""
    return made.kind in MOVED or (made.kind in _ON and len(made.traced()) == 1)


def _repeats(value: Value) -> bool:
    """Whether it has been made of fewer entries than it has, each in several places."""
    made = value.operation
    if made is None or made.kind in MOVED:
        return False
    return any(source.shape != value.shape for _, source in made.traced())


def _shared(values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """The values whose entries have gone into several others, and what is between, last first."""
    frontier = dict[Value, int]()
    for place, value in enumerate(values):
        frontier[value] = frontier.get(value, 0) | 1 << place
    shared, between = list[Value](), list[Value]()
    while (sides := reduce(int.__or__, frontier.values(), 0)) & (sides - 1):
        latest = max(frontier, key=lambda value: value.index)
        own = frontier.pop(latest)
        meets = own & (own - 1)
        made = latest.operation if _goes_on(latest) else None
        if made is None or (
            meets and not (_may_repeat(made) or any(map(latest.descends_from, frontier)))
        ):
            shared += [latest] if meets else []
            continue
        between.append(latest)
        for _, source in made.traced():
            frontier[source] = frontier.get(source, 0) | own
    return shared, between


def _lie_apart(values: Sequence[Value], shared: Sequence[Value]) -> bool:
    """Whether values are seen at once to be of other parts of one, as the two halves of a GLU."""
    (whole, *further) = shared
    seen = [] if further else [_seen(value, whole) for value in values]
    views = [View.of(one) for one in seen if one is not None]
    return len(views) == len(values) and all(
        one.apart_from(other, tuple(whole.shape)) for one, other in combinations(views, 2)
    )


def _seen(value: Value, whole: Value) -> Tensor | None:
    """The part of another value that one is made of, entry by entry; None if it is no view."""
    if value is whole:
        return torch.empty(whole.shape, device="meta")
    made = value.operation if _goes_on(value) else None
    if made is None or (made.kind in MOVED and view_of(made, value) is None):
        return None
    seen = [_seen(source, whole) for _, source in made.traced()]
    first = seen[0]
    if first is None or any(one is None or View.of(one) != View.of(first) for one in seen):
        return None
    if made.kind not in MOVED:
        return first if first.shape == value.shape else None
    try:
        found: Tensor = made.replay([first])[made.outputs.index(value)]
    except RuntimeError:  # a view of what was copied, and lies otherwise than here
        return None
    return found


def _labelled(shared: Sequence[Value], between: Sequence[Value]) -> dict[Value, Sequence[Term]]:
    """The labels of what several values share, and of what is between, made of that."""
    first, terms = _SEVERAL + 1, dict[Value, Sequence[Term]]()
    for value in shared:
        count = value.shape.numel()
        numbers = torch.arange(count, dtype=torch.float64, device=value.device) + first
        terms[value] = [(_laid_out(numbers.view(value.shape), value),)]
        first += count
    for value in reversed(between):
        made = value.operation
        if made is None:
            raise RuntimeError("only what was made is between values")
        given = [(o, _terms(v, terms)) for o, v in made.traced()]
        if made.kind in MOVED:
            found = list(_moved(made, value, given, first))
        else:
            found = [tuple(s.expand(value.shape) for s in term) for term in _worked(made, given)]
            found = [tuple(_laid_out(labels, value) for labels in term) for term in found]
        terms[value] = found
    return terms


def _terms(value: Value, known: dict[Value, Sequence[Term]]) -> Sequence[Term]:
    return known.get(value) or [(_several(value),)]


def _several(value: Value) -> Tensor:
    return torch.full((), _SEVERAL, dtype=torch.float64, device=value.device).expand(value.shape)


def _laid_out(labels: Tensor, value: Value) -> Tensor:
    """Labels as a value lies in memory, so that it may be viewed in the same ways."""
    if labels.stride() == value.stride or 0 in value.stride:
        return labels
    return value.blank(labels.dtype).copy_(labels)


def _moved(
    operation: Operation, output: Value, given: Sequence[tuple[Operand, Sequence[Term]]], end: float
) -> Iterator[Term]:
    """What the terms of each operand become where entries are moved, beside constants."""
    place = operation.outputs.index(output)

    def moved(operand: Operand, labels: Tensor) -> Tensor:
        def tensor(other: Operand) -> Tensor:
            if other is operand:
                return labels
            constant = other.role is Role.SIGNAL or other.value is not None
            return labels.new_zeros(other.size) if constant else other.tensor

        found = operation.run(tensor)
        found = found[place] if isinstance(found, (tuple, list)) else found
        strange = (found.abs() < _SEVERAL) | (found.abs() >= end)
        if operation.kind is Kind.SUM_AT_INDICES:
            return torch.where(strange & (found != 0), _SEVERAL, found)
        return torch.where(strange, 0.0, found)

    for operand, terms in given:
        for term in terms:
            yield tuple(moved(operand, labels) for labels in term)


def _worked(
    operation: Operation, given: Sequence[tuple[Operand, Sequence[Term]]]
) -> Sequence[Term]:
    """The terms of what an operation makes of each entry by itself."""
    added = [terms for operand, terms in given if operand.role is Role.BIAS]
    parts = [terms for operand, terms in given if operand.role is not Role.BIAS]
    if operation.kind in _SUMS:
        return [term for terms in (*parts, *added) for term in terms]
    if operation.kind in _ON:
        products = [sum(terms, ()) for terms in product(*parts)]
        return products + [term for terms in added for term in terms]
    one = _of_all(labels for terms in parts for term in terms for labels in term)
    return [(-one.abs() if _activates(operation) else one,)]


def _activates(operation: Operation) -> bool:
    return (
        operation.kind is Kind.ENTRYWISE
        and operation.form is not Form.POWER
        and any(is_gate_by_formula(value) for value in operation.outputs if value is not None)
    )


def _of_both(one: Tensor, other: Tensor) -> Tensor:
    """The label of what is made of two, entry by entry."""
    own, others = one.abs(), other.abs()
    label = torch.where((own == 0) | (own == others), others, _SEVERAL)
    label = torch.where(others == 0, own, label)
    return torch.where((one < 0) | (other < 0), -label, label)


def _of_all(labels: Iterable[Tensor]) -> Tensor:
    """The label of what is made of several, entry by entry."""
    return reduce(_of_both, labels)


def _met(factors: Mapping[Operand, Sequence[Term]], *, may_be_whole: bool) -> Meeting:
    """How the terms of factors meet, entry by entry."""
    meets, several, gated, split = [], [], [], []
    for terms in product(*factors.values()):
        whole = _of_all(sum(terms, ()))
        mixed = whole.abs() == _SEVERAL
        meet = reduce(torch.add, [(_of_all(term) != 0).int() for term in terms]) > 1
        meets.append(meet.any())
        several.append((meet & mixed).any())
        for one, other in (pair for some in combinations(terms, 2) for pair in product(*some)):
            alike = (one.abs() == other.abs()) & (one.abs() > _SEVERAL) & ((one < 0) | (other < 0))
            gated.append(alike.any())
            split.append((alike & mixed).any())
    known = {
        operand: _of_all(labels for term in terms for labels in term) != 0
        for operand, terms in factors.items()
    }
    anywhere = reduce(torch.logical_or, known.values())
    lacking = [(anywhere & ~signal).any() for signal in known.values()]
    read = [torch.stack(some).any() for some in (meets, several, split, gated)]
    is_met, is_several, is_split, is_gate, *lacks = map(bool, numbers(torch.stack(read + lacking)))
    lack = tuple(operand for operand, one in zip(factors, lacks, strict=True) if one)
    is_whole = may_be_whole and is_met and not is_several
    return Meeting(is_whole, is_split, is_gate, lack)
