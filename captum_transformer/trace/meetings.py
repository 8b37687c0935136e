"""Finds out which factors of a product were made of the same entry of one value.

In ``b * a * sigmoid(a)``, the first product separates the factors of an activation of ``a``.
Entries may be moved, masked, chosen or written into other tensors on their way to the product.
Therefore the entries of the last shared values are labelled, and all operations in between that
move entries are run on the labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import combinations, product, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.calling.precision import widest_float
from captum_transformer.calling.reading import numbers
from captum_transformer.trace.axis import View
from captum_transformer.trace.gates import MOVED, are_of_one_entry, works_by_entry
from captum_transformer.trace.kinds import Form, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.quotients import is_gate_by_formula
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of

# Labels are whole numbers above this one, larger than the numbers that models mask with or count,
# and negative after an activation. This one labels results of several entries; constants have zero.
_SEVERAL = 2.0**52
_PRODUCTS = frozenset({Kind.MUL, Kind.DIV, Kind.PRODUCT})
_SUMS = frozenset({Kind.ADD, Kind.SUB, Kind.MAXIMUM})
_ON = _PRODUCTS | _SUMS | {Kind.COPY, Kind.HOMOGENEOUS}
# The labels of each factor of a value, where the value is the product of the factors.
Factors = list[Tensor]
# The parts of other values that a value was made of, perhaps with further parts.
Pieces = frozenset[tuple[Value, View]]


class Meeting(NamedTuple):
    """How the factors of a product are related.

    Attributes:
        is_whole: whether the product is an activation: wherever several factors are signals, they
            are made of the same entry.
        is_split: whether some entry is a product of a signal, its own activation, and other
            signals.
        is_gate: whether some entry contains a product of a signal and its own activation.
        lacking: the factors that are constant in some entry where another factor is not.
    """

    is_whole: bool = False
    is_split: bool = False
    is_gate: bool = False
    lacking: tuple[Operand, ...] = ()

    @property
    def why_refused(self) -> str:
        """The reason why neither rules for products nor rules for activations apply."""
        if self.is_split:
            return (
                "it multiplies another signal with an activation that is written in several steps, "
                "and the rule is for the whole"
            )
        return "it is an activation of one signal in some entries, and a product in others"


def meeting(operation: Operation) -> Meeting | None:
    """Returns how the factors of an entry-wise product of several signals are related, or None."""
    factors = {o: value for o, value in operation.traced() if o.role is not Role.BIAS}
    values = list(factors.values())
    if len(values) < 2 or operation.kind not in _PRODUCTS or not works_by_entry(operation):
        return None
    if are_of_one_entry(*values):
        return Meeting(is_whole=True)
    shared, between = _shared(values)
    shared = [value for value in shared if value.shape.numel()]  # experts may have no tokens
    if not shared or _lie_apart(values, shared, between):
        return Meeting()
    labels = _labelled(shared, between)
    # An entry that is broadcast to several others doesn't belong to only one of them.
    repeats = len({value.shape for value in values}) > 1 or any(map(_repeats, between))
    found = {operand: _factors(value, labels) for operand, value in factors.items()}
    return _met(found, may_be_whole=not repeats)


def _goes_on(value: Value) -> bool:
    """Whether a value was made entry-wise or by moving entries, so that its sources are followed.

    A sum of signals is not followed: in a recurrence, following its terms would not end.
    """
    made = value.operation
    if made is None or value.dtype.is_complex or made.arguments.get("reduce") is not None:
        return False
    if made.kind in _SUMS and len(made.traced()) > 1 and not any(map(_is_filled, made.traced())):
        return False
    return made.kind in MOVED or works_by_entry(made)


def _is_filled(traced: tuple[Operand, Value]) -> bool:
    """Whether some entries of a value may be constants, so that adding to it may fill them in."""
    _, value = traced
    made = value.operation
    return made is not None and made.kind in MOVED and view_of(made, value) is None


def _may_repeat(made: Operation) -> bool:
    """Whether an operation's output may hold an entry several times, as after joining values."""
    return made.kind in MOVED or (made.kind in _ON and len(made.traced()) == 1)


def _repeats(value: Value) -> bool:
    """Whether an entry-wise operation has broadcast one of its operands to make the value."""
    made = value.operation
    if made is None or made.kind in MOVED:
        return False
    return any(source.shape != value.shape for _, source in made.traced())


def _shared(values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Returns the last values that several of the given ones share, and all values in between.

    Both lists start with the latest value.
    """
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


def _lie_apart(values: Sequence[Value], shared: Sequence[Value], between: Sequence[Value]) -> bool:
    """Whether views alone show that values are made of separate parts, as the halves of a GLU."""
    seen = {value: (value, torch.empty(value.shape, device="meta")) for value in shared}
    pieces = {value: frozenset([(value, View.of(whole))]) for value, whole in seen.values()}
    for value in reversed(between):
        made = value.operation
        sources = [] if made is None else [source for _, source in made.traced()]
        pieces[value] = Pieces().union(*(pieces.get(source, ()) for source in sources))
        if made is None or len(pieces[value]) != 1 or any(one not in seen for one in sources):
            continue
        whole, part = seen[sources[0]]
        if made.kind not in MOVED:
            if part.shape == value.shape:
                seen[value] = whole, part
        elif view_of(made, value) is not None:
            try:
                part = made.replay([part])[made.outputs.index(value)]
            except RuntimeError:  # the view is of a copy with another memory layout than here
                continue
            seen[value] = whole, part
            pieces[value] = frozenset([(whole, View.of(part))])
    return not any(
        whole is other and not one.apart_from(two, tuple(whole.shape))
        for some, others in combinations([pieces.get(value, ()) for value in values], 2)
        for (whole, one), (other, two) in product(some, others)
    )


def _labelled(shared: Sequence[Value], between: Sequence[Value]) -> dict[Value, Factors]:
    """Returns labels for the shared values and, derived from these, for all values in between."""
    first, known = _SEVERAL + 1, dict[Value, Factors]()
    for value in shared:
        count = value.shape.numel()
        numbers = torch.arange(count, dtype=torch.float64, device=_place(value)) + first
        known[value] = [_laid_out(numbers.view(value.shape), value)]
        first += count
    for value in reversed(between):
        made = value.operation
        if made is None:
            raise RuntimeError("only what was made is between values")
        given = {operand: _factors(source, known) for operand, source in made.traced()}
        if made.kind in MOVED:
            known[value] = _moved(made, value, given, first)
        else:
            found = [labels.expand(value.shape) for labels in _worked(made, given)]
            known[value] = [_laid_out(labels, value) for labels in found]
    return known


def _factors(value: Value, known: Mapping[Value, Factors]) -> Factors:
    return known.get(value) or [_several(value)]


def _several(value: Value) -> Tensor:
    return torch.full((), _SEVERAL, dtype=torch.float64, device=_place(value)).expand(value.shape)


def _place(value: Value) -> torch.device:
    """Returns the device for the labels of a value: its own if this has numbers that precise."""
    device = value.device
    return device if widest_float(device) is torch.float64 else torch.device("cpu")


def _laid_out(labels: Tensor, value: Value) -> Tensor:
    """Gives labels the memory layout of a value, so that the same views of them are possible."""
    if labels.stride() == value.stride or 0 in value.stride:
        return labels
    return labels.new_empty_strided(value.shape, value.stride).copy_(labels)


def _moved(
    operation: Operation, output: Value, given: Mapping[Operand, Factors], end: float
) -> Factors:
    """Returns the labels of factors after an operation that moves entries."""
    place = operation.outputs.index(output)

    def moved(operand: Operand, labels: Tensor) -> Tensor:
        def tensor(other: Operand) -> Tensor:
            if other is operand:
                return labels
            constant = other.role is Role.SIGNAL or other.value is not None
            return labels.new_zeros(other.size) if constant else other.tensor.to(labels.device)

        found = operation.run(tensor)
        found = found[place] if isinstance(found, (tuple, list)) else found
        strange = (found.abs() < _SEVERAL) | (found.abs() >= end)
        if operation.kind is Kind.SUM_AT_INDICES:
            return torch.where(strange & (found != 0), _SEVERAL, found)
        return torch.where(strange, 0.0, found)

    parts = [[moved(operand, labels) for labels in of] for operand, of in given.items()]
    return reduce(_sum, parts)


def _worked(operation: Operation, given: Mapping[Operand, Factors]) -> Factors:
    """Returns the labels of factors after an entry-wise operation."""
    added = [of for operand, of in given.items() if operand.role is Role.BIAS]
    parts = [of for operand, of in given.items() if operand.role is not Role.BIAS]
    if operation.kind in _SUMS:
        return reduce(_sum, (*parts, *added))
    together = [labels for of in parts for labels in of]
    if operation.kind in _ON:
        return reduce(_sum, (together, *added))
    one = _of_all(together)
    return [-one.abs() if _activates(operation) else one]


def _sum(some: Factors, others: Factors) -> Factors:
    """Returns the factors of a sum; each entry has those of the only non-constant term there."""
    here, there = _of_all(some), _of_all(others)
    whole = torch.where((here != 0) & (there != 0), _of_both(here, there), 0.0)
    pairs = zip_longest(some, others, fillvalue=torch.zeros_like(whole))
    alone = [torch.where(whole != 0, 0.0, one + other) for one, other in pairs]
    return [alone[0] + whole, *alone[1:]]


def _activates(operation: Operation) -> bool:
    return (
        operation.kind is Kind.ENTRYWISE
        and operation.form is not Form.POWER
        and any(is_gate_by_formula(value) for value in operation.outputs if value is not None)
    )


def _of_both(one: Tensor, other: Tensor) -> Tensor:
    """Returns the labels of a result that is made of two others entry by entry."""
    own, others = one.abs(), other.abs()
    label = torch.where((own == 0) | (own == others), others, _SEVERAL)
    label = torch.where(others == 0, own, label)
    return torch.where((one < 0) | (other < 0), -label, label)


def _of_all(labels: Iterable[Tensor]) -> Tensor:
    """Returns the labels of a result that is made of several others entry by entry."""
    return reduce(_of_both, labels)


def _met(factors: Mapping[Operand, Factors], *, may_be_whole: bool) -> Meeting:
    """Returns how the factors of operands are related, given their labels."""
    whole = [_of_all(of) for of in factors.values()]
    mixed = _of_all(whole).abs() == _SEVERAL
    signals = torch.stack([(labels != 0).expand(mixed.shape) for labels in whole])
    meet = signals.sum(0) > 1
    alike = torch.zeros_like(meet)
    for some, others in combinations(factors.values(), 2):
        for one, other in product(some, others):
            activated = (one < 0) | (other < 0)
            alike = alike | ((one.abs() == other.abs()) & (one.abs() > _SEVERAL) & activated)
    lacking = (signals.any(0) & ~signals).flatten(1).any(1)
    read = torch.stack([meet.any(), (meet & mixed).any(), (alike & mixed).any(), alike.any()])
    found = numbers(torch.cat([read, lacking]), "which factors were made of the same entry")
    is_met, is_several, is_split, is_gate, *lacks = map(bool, found)
    lack = tuple(operand for operand, one in zip(factors, lacks, strict=True) if one)
    return Meeting(may_be_whole and is_met and not is_several, is_split, is_gate, lack)
