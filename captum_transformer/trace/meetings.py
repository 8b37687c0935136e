"""Where the factors of a product meet: which of them were made of the same entry of one value.

In ``b * a * sigmoid(a)`` an activation of ``a`` is taken apart by the product that is in between.
Entries may be moved, masked, chosen or written into other tensors on their way, so they are
labelled where their ways part, and the labels take all these ways: what moves entries is run on
labels instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import combinations, product, zip_longest
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
# The labels of each factor of a value, which is their product.
Factors = list[Tensor]
# The parts of other values that one was made of, and more perhaps.
Pieces = frozenset[tuple[Value, View]]


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
    shared = [value for value in shared if value.shape.numel()]  # experts may have no tokens
    if not shared or _lie_apart(values, shared, between):
        return Meeting()
    labels = _labelled(shared, between)
    # An entry that is repeated for several others is more than that of one of them.
    repeats = len({value.shape for value in values}) > 1 or any(map(_repeats, between))
    found = {operand: _factors(value, labels) for operand, value in factors.items()}
    return _met(found, may_be_whole=not repeats)


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


def _lie_apart(values: Sequence[Value], shared: Sequence[Value], between: Sequence[Value]) -> bool:
    """Whether values are seen at once to be of other parts, as the two halves of a GLU."""
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
            except RuntimeError:  # a view of what was copied, and lies otherwise than here
                continue
            seen[value] = whole, part
            pieces[value] = frozenset([(whole, View.of(part))])
    return not any(
        whole is other and not one.apart_from(two, tuple(whole.shape))
        for some, others in combinations([pieces.get(value, ()) for value in values], 2)
        for (whole, one), (other, two) in product(some, others)
    )


def _labelled(shared: Sequence[Value], between: Sequence[Value]) -> dict[Value, Factors]:
    """The labels of what several values share, and of what is between, made of that."""
    first, known = _SEVERAL + 1, dict[Value, Factors]()
    for value in shared:
        count = value.shape.numel()
        numbers = torch.arange(count, dtype=torch.float64, device=value.device) + first
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
    return torch.full((), _SEVERAL, dtype=torch.float64, device=value.device).expand(value.shape)


def _laid_out(labels: Tensor, value: Value) -> Tensor:
    """Labels as a value lies in memory, so that it may be viewed in the same ways."""
    if labels.stride() == value.stride or 0 in value.stride:
        return labels
    return value.blank(labels.dtype).copy_(labels)


def _moved(
    operation: Operation, output: Value, given: Mapping[Operand, Factors], end: float
) -> Factors:
    """What the factors of operands become where entries are moved, beside constants."""
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

    parts = [[moved(operand, labels) for labels in of] for operand, of in given.items()]
    return reduce(_sum, parts)


def _worked(operation: Operation, given: Mapping[Operand, Factors]) -> Factors:
    """The factors of what an operation makes of each entry by itself."""
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
    """The factors of a sum: in each entry those of the one term that is no constant there."""
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
    """The label of what is made of two, entry by entry."""
    own, others = one.abs(), other.abs()
    label = torch.where((own == 0) | (own == others), others, _SEVERAL)
    label = torch.where(others == 0, own, label)
    return torch.where((one < 0) | (other < 0), -label, label)


def _of_all(labels: Iterable[Tensor]) -> Tensor:
    """The label of what is made of several, entry by entry."""
    return reduce(_of_both, labels)


def _met(factors: Mapping[Operand, Factors], *, may_be_whole: bool) -> Meeting:
    """How the factors of operands meet, entry by entry."""
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
    is_met, is_several, is_split, is_gate, *lacks = map(bool, numbers(torch.cat([read, lacking])))
    lack = tuple(operand for operand, one in zip(factors, lacks, strict=True) if one)
    return Meeting(may_be_whole and is_met and not is_several, is_split, is_gate, lack)
