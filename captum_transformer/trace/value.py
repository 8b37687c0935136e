"""The values that go from one operation to the next."""

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_transformer.trace.axis import Axis
from captum_transformer.trace.batch import Batch
from captum_transformer.trace.kinds import MOVES, Form, Kind
from captum_transformer.trace.walks import found_behind

if TYPE_CHECKING:
    from captum_transformer.trace.operation import Operation

Features = tuple[Axis, ...] | None
# A denominator stays one where these rearrange, scale or raise it.
_SCALES = frozenset({Kind.MUL, Kind.DIV, Kind.ADD, Kind.SUB, Kind.COPY, Kind.HOMOGENEOUS})
_KEEPS_DENOMINATORS = MOVES | {Kind.COPY, Kind.ENTRYWISE, Kind.HOMOGENEOUS, Kind.MUL, Kind.DIV}


class Value:
    """One version of a tensor that the inputs reach.

    Attributes:
        index: its place in the order of values.
        holder: a weak reference to the tensor.
        version: how often the tensor had been written into when it came to hold this value.
        operation: what produced it; None for an input.
        batch: which samples its entries belong to, and where.
        coupling: the first operation in its history that may mix samples, if any. What is known
            about samples after that operation is true only if it keeps them apart.
        features: where the features of its tokens lie in it, whole or split (into heads, say);
            None while that is unknown.
        ancestors: bit set of the values that it was made from.
        attention: bit set of the attention calls in its history.
        mixtures: bit set of the operations in its history that mix tokens, other than attention.
        shape, stride, dtype, device: of the tensor.
        holds_ids: whether it holds token ids, which have no gradient.
        learned: whether no input reaches it: attention among learned queries, and what follows it.
        keys: where the axis over which a softmax ran lies in it, or None.
        is_cut: whether it holds softmax weights of tokens, cut up or rearranged such that their
            keys lie along no known axis.
    """

    __slots__ = (
        "__weakref__",
        "_origin",
        "ancestors",
        "attention",
        "batch",
        "coupling",
        "device",
        "dtype",
        "features",
        "holder",
        "holds_ids",
        "index",
        "is_cut",
        "keys",
        "learned",
        "mixtures",
        "operation",
        "shape",
        "stride",
        "version",
    )

    def __init__(self, index: int, tensor: Tensor) -> None:
        self.index = index
        self.holder = weakref.ref(tensor)
        self.version = tensor._version
        self.shape = tensor.shape
        self.stride = tensor.stride()
        self.dtype = dtype = tensor.dtype
        self.device = tensor.device
        self.holds_ids = not (dtype.is_floating_point or dtype.is_complex)
        self.operation: Operation | None = None
        self.batch: Batch | None = None
        self.coupling: Operation | None = None
        self.features: Features = None
        self.keys: Axis | None = None
        self.is_cut = False
        self.ancestors = self.attention = self.mixtures = 0
        self.learned = False
        self._origin: Value | None = None

    @property
    def origin(self) -> "Value":
        """The value that was cast or rearranged into this one; this one itself if none was."""
        return self._origin or self

    @origin.setter
    def origin(self, value: "Value") -> None:
        # Never itself: an object that refers to itself would wait for the garbage collector.
        self._origin = value

    @property
    def samples(self) -> Axis | None:
        """Where the samples of the batch lie in it, if all of them are there and apart."""
        batch = self.batch
        return batch.axis if batch is not None and batch.axis.size == batch.of else None

    @property
    def is_denominator(self) -> bool:
        """Whether it divides a signal, as ``rsqrt(mean(x ** 2))`` does in an RMSNorm."""
        return all(found_behind(self, _divides))

    @property
    def weighs_tokens(self) -> bool:
        """Whether it holds softmax weights of tokens, and not of features."""
        return self.keys is not None and self.keys not in (self.features or ())

    def blank(self, dtype: torch.dtype) -> Tensor:
        """A tensor of the same layout for replays in which the entries don't matter."""
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=self.device)

    def descends_from(self, other: "Value") -> bool:
        """Whether it was made from ``other``."""
        return bool(self.ancestors >> other.index & 1)


def lengths_of(value: Value) -> tuple[int, ...]:
    """Returns the lengths of a value's dimensions, one for those along which it was repeated."""
    sizes = zip(value.shape, value.stride, strict=True)
    return tuple([length if step else min(length, 1) for length, step in sizes])


def unrepeated(value: Value) -> Value:
    """Returns the value whose entries were repeated to make one, as by `expand`, or itself."""
    while lengths_of(value) != value.shape:
        made = value.operation
        if made is None or made.kind is not Kind.MOVE:
            break
        ((_, value),) = made.traced()
    return value


def _divides(value: Value) -> "list[Value] | bool":
    """Returns whether a value divides, or values to look at: all of them have to."""
    operation = value.operation
    if operation is None:
        return False
    if operation.kind is Kind.RECIPROCAL:
        return True
    if operation.kind is Kind.ENTRYWISE and (power := base_of(operation)) is not None:
        base, exponent = power
        return exponent < 0 or [base]
    if operation.kind not in _KEEPS_DENOMINATORS and not operation.spreads:
        return False
    return [source for _, source in operation.traced()]


def base_of(operation: "Operation") -> tuple[Value, float] | None:
    """Returns base and exponent of a power written as ``exp(exponent * log(base))``, or None."""
    if operation.form is not Form.EXPONENTIAL:
        return None
    steps: list[Operation] = []
    step = operation.traced()[0][1].operation
    while step is not None and len(step.traced()) == 1 and step.form is not Form.LOGARITHM:
        if step.kind not in _SCALES or len(step.operands) > 1:
            return None
        steps.append(step)
        step = step.traced()[0][1].operation
    if step is None or step.form is not Form.LOGARITHM:
        return None
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for scale in reversed(steps):
        (ends,) = scale.replay([ends])
    return step.traced()[0][1], float(ends[0] - ends[1])
