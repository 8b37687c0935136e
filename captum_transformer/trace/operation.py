"""What a tape holds: operations, their operands, and the values that go from one to the next."""

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.batch import Batch
from captum_transformer.trace.contraction import Contraction, contraction
from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import MOVES, Form, Kind, Role
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.storages import dense

if TYPE_CHECKING:
    from captum_transformer.trace.recognise import Pattern

Features = tuple[Axis, ...] | None
# A denominator stays one where these rearrange, scale or raise it.
_KEEPS_DENOMINATORS = MOVES | {Kind.COPY, Kind.ENTRYWISE, Kind.HOMOGENEOUS, Kind.MUL, Kind.DIV}


class Value:
    """One version of a tensor that the inputs reach.

    Attributes:
        index: its place in the order of values.
        holder: the tensor, as long as it lives.
        version: how often the tensor had been written into when it came to hold this value.
        operation: what produced it; None for an input.
        batch: which samples its entries belong to, and where.
        coupling: where that was lost: the first operation that may not keep samples apart. What is
            known behind it is true only if it does.
        features: where the features of its tokens lie in it, whole or split (into heads, say);
            None as long as that is unknown.
        ancestors: bit set of the values that it was made from.
        attention: bit set of the attention calls in its history.
        mixtures: bit set of the operations in its history that mix tokens, and are no attention.
        shape, stride, dtype, device: of the tensor.
        holds_ids: whether it holds token ids, which have no gradient.
        learned: whether no input reaches it: attention among learned queries, and what follows.
        keys: where the axis that a softmax ran over lies in it, if one did.
    """

    operation: "Operation | None" = None
    batch: Batch | None = None
    coupling: "Operation | None" = None
    features: Features = None
    ancestors = 0
    attention = 0
    mixtures = 0
    learned = False
    keys: Axis | None = None

    def __init__(self, index: int, tensor: Tensor) -> None:
        self.index = index
        self.holder = weakref.ref(tensor)
        self.version = tensor._version
        self.shape = tensor.shape
        self.stride = tensor.stride()
        self.dtype = dtype = tensor.dtype
        self.device = tensor.device
        self.holds_ids = not (dtype.is_floating_point or dtype.is_complex)
        self._origin: Value | None = None

    @property
    def origin(self) -> "Value":
        """The value whose entries these are, merely cast or rearranged; itself otherwise."""
        return self._origin or self

    @origin.setter
    def origin(self, value: "Value") -> None:
        # Not itself: what refers to itself would wait for the garbage collector.
        self._origin = value

    @property
    def samples(self) -> Axis | None:
        """Where the samples of the batch lie in it, if all of them are there and apart."""
        batch = self.batch
        return batch.axis if batch is not None and batch.axis.size == batch.of else None

    @property
    def is_denominator(self) -> bool:
        """Whether it is what a signal is divided by, as ``rsqrt(mean(x ** 2))`` in an RMSNorm."""
        operation = self.operation
        if operation is None:
            return False
        if operation.kind is Kind.RECIPROCAL:
            return True
        if operation.kind not in _KEEPS_DENOMINATORS and not operation.spreads:
            return False
        return all(value.is_denominator for _, value in operation.traced())

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


class Operand:
    """A tensor argument of a recorded operation: what is needed to replay it.

    The data is held only if a rule may ask for it, and stays what it was when the operation ran,
    whatever is written into the tensor later.

    Args:
        tensor: the argument, held until it is known whether its data is kept.
        value: what it holds, if the inputs reach it.
        role: what it is for.

    Attributes:
        size, dtype, device: of the tensor.
        tokens: learned queries that have attended to each other, beside signals: they are a
            constant, but tokens that attend.
    """

    __slots__ = ("data", "device", "dtype", "role", "size", "tokens", "value")

    def __init__(self, tensor: Tensor, value: Value | None, role: Role = Role.SIGNAL) -> None:
        self.data: Tensor | None = tensor
        self.value = value
        self.role = role
        known = tensor if value is None else value
        self.size, self.dtype, self.device = known.shape, known.dtype, known.device
        self.tokens: Value | None = None

    @property
    def shape(self) -> torch.Size:
        """Its size: it stands among indices, which are asked as tensors are."""
        return self.size

    @property
    def given(self) -> Tensor:
        """The data as it was when the operation ran, perhaps wrapped, as quantised weights are."""
        if self.data is None:
            raise RuntimeError("the trace was told not to keep this operand")
        return self.data

    @property
    def tensor(self) -> Tensor:
        """The data as a plain tensor."""
        return dense(self.given)

    def like(self, dtype: torch.dtype) -> Tensor:
        """The data beside entries of another precision, with which its own entries move."""
        data = self.tensor
        if data.is_floating_point() or (self.role is Role.SIGNAL and data.dtype != torch.bool):
            return data.to(dtype)
        return data


class Operation:
    """One operation; tensors stand as `Operand` in its arguments.

    It is described before it runs, so that rules that act during the forward pass and those that
    walk the tape read the same.

    Attributes:
        index: its place on the tape.
        function: what the table knows of its function.
        kind: what it is.
        args: its arguments by position, as they were given.
        kwargs: its arguments by name, as they were given.
        operands: all tensors among them.
        arguments: the arguments under their canonical names.
        call: what runs it again, out of place.
        outputs: the values that came out; None for those that the inputs do not reach.
        result: its output, where a rule asks for that.
        edge: where its output stands in the autograd graph, where a rule asks for that.
        attention: the attention call that it is, if it is one.
        pattern: how it attends, if it does.
        refusal: why a method has no rule for it, raised if relevance arrives at its outputs.
        refused: these outputs, in the autograd graph.
        module: the name of the module that ran it.
        shift: the operand of a sum that a softmax written by hand does not depend on.
        activates: whether it is a step of an activation that a rule takes as a whole.
        views: what `views_of` knows of it, if that was asked.
    """

    result: Operand | None
    edge: GradientEdge | None
    attention: Any
    pattern: "Pattern | None"
    refusal: Exception | None
    shift: Operand | None
    views: tuple[View, ...] | None
    _contraction: Contraction | None

    def __init__(
        self,
        index: int,
        function: Function,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Operand],
        arguments: dict[str, Any],
    ) -> None:
        self.index, self.function, self.kind = index, function, kind
        self.args, self.kwargs, self.operands = args, kwargs, operands
        self.arguments = arguments
        self.call: Callable[..., Any] = function.call
        self.outputs: list[Value | None] = []
        self.refused: Sequence[GradientEdge] = ()
        self.module, self.activates = "", False
        self._traced = [(o, o.value) for o in operands if o.value is not None]
        # Not in the class: what many objects lack is looked up slowly there.
        self.result = self.edge = self.attention = self.pattern = None
        self.refusal = self.shift = self.views = self._contraction = None

    def changed(self, **attributes: Any) -> "Operation":
        """The same operation with other operands, or run in another way."""
        new, operands = copy.copy(self), attributes.get("operands", self.operands)
        traced = [(o, o.value) for o in operands if o.value is not None]
        vars(new).update(attributes, _traced=traced, _contraction=None)
        return new

    @property
    def name(self) -> str:
        """The function's bare name, for people to read."""
        return self.function.name

    @property
    def described(self) -> str:
        """What it is and where, for the messages of errors."""
        shapes = [tuple(value.shape) for _, value in self.traced()]
        where = f" in `{self.module}`" if self.module else ""
        return f"`{self.name}`{where}, on tensors of shapes {shapes}"

    @property
    def form(self) -> Form | None:
        """What it makes of each entry: a power, or an exponential if that is the exponent."""
        exponent = self.arguments.get("exponent")
        if not isinstance(exponent, Operand) or exponent.value is None:
            return self.function.entry.form
        return Form.EXPONENTIAL if len(self.traced()) == 1 else None

    def argument(self, name: str, default: Any = None) -> Any:
        """What was given for an argument, by its canonical name."""
        return self.arguments.get(name, default)

    def along(self, ndim: int) -> tuple[int, ...] | None:
        """The dimensions that it works along, counted from the front; None if it does not tell."""
        default = self.function.entry.along
        if default is None:
            return None
        dims = self.arguments.get("dim")
        if isinstance(dims, int) and not isinstance(dims, bool):
            return (dims % ndim,) if ndim else ()
        if isinstance(dims, (tuple, list)) and dims:
            return tuple(sorted({dim % ndim for dim in dims})) if ndim else ()
        if isinstance(dims, Operand):  # as in `torch.max(x, y)`
            return ()
        return tuple(range(ndim)[default])

    def dim(self, ndim: int) -> int | None:
        """The dimension that it works along; None if these are several or none."""
        dims = self.along(ndim)
        return dims[0] if dims is not None and len(dims) == 1 else None

    def traced(self) -> list[tuple[Operand, Value]]:
        """The operands that the inputs reach, each with its value."""
        return self._traced

    @property
    def spreads(self) -> bool:
        """Whether it is a product that sums over nothing, as of a column and a row."""
        product = self.contraction()
        return product is not None and all(
            operand.size[dim] == 1
            for operand, _ in self.traced()
            for dim in product.summed(operand)
        )

    def carried(self) -> list[tuple[Operand, Value]]:
        """The operands that hold tokens, learned queries that have attended included."""
        return [(o, value) for o in self.operands if (value := o.value or o.tokens) is not None]

    def contraction(self) -> Contraction | None:
        """The product that it is, with a letter for each dimension; None if it is none."""
        if self._contraction is None and self.kind is Kind.PRODUCT:
            self._contraction = contraction(self)
        return self._contraction

    def clear(self) -> None:
        """Lets go of everything that it refers to."""
        vars(self).clear()

    def replay(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Runs the operation again on other tensors in the place of its traced operands.

        Constants come in the precision of these tensors.
        """
        replaced = {id(o): t for (o, _), t in zip(self.traced(), tensors, strict=True)}
        dtype = tensors[0].dtype

        def tensor(operand: Operand) -> Tensor:
            known = replaced.get(id(operand))
            return operand.like(dtype) if known is None else known

        out = self.run(tensor)
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def run(self, tensor: Callable[[Operand], Tensor]) -> Any:
        """Runs the operation out of place, with a tensor for each of its operands."""
        args = mapped(tensor, Operand, self.args)
        return self.call(*args, **mapped(tensor, Operand, self.kwargs))
