"""What a tape holds: operations and their operands."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.trace.axis import View
from captum_transformer.trace.contraction import Contraction, contraction
from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import Form, Kind, Role
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.storages import dense
from captum_transformer.trace.value import Value

if TYPE_CHECKING:
    from captum_transformer.trace.recognise import Pattern


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
        again: brings the data back, where it is kept by running the operations before it again.
    """

    __slots__ = ("again", "data", "device", "dtype", "role", "size", "tokens", "value")

    def __init__(self, tensor: Tensor, value: Value | None, role: Role = Role.SIGNAL) -> None:
        self.data: Tensor | None = tensor
        self.value = value
        self.role = role
        known = tensor if value is None else value
        self.size, self.dtype, self.device = known.shape, known.dtype, known.device
        self.tokens: Value | None = None
        self.again: Callable[[], None] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the data can be had."""
        return self.data is not None or self.again is not None

    @property
    def shape(self) -> torch.Size:
        """Its size: it stands among indices, which are asked as tensors are."""
        return self.size

    @property
    def given(self) -> Tensor:
        """The data as it was when the operation ran, perhaps wrapped, as quantised weights are."""
        if self.data is None and self.again is not None:
            self.again()
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
        note: what a rule leaves here for the rules of operations that come later.
        rule: of several rules the one that it ran under.
        views: what `views_of` knows of it, if that was asked.
        signals: what the token flow knows of it: the operands that get shares, if it has looked.
    """

    result: Operand | None
    edge: GradientEdge | None
    attention: Any
    pattern: "Pattern | None"
    refusal: Exception | None
    shift: Operand | None
    views: tuple[View, ...] | None
    signals: list[tuple[Operand, Value]] | None
    _contraction: Contraction | None
    note: Any = None
    rule: "Callable[[Operation], Any] | None" = None

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
        self.refusal = self.shift = self.views = self.signals = self._contraction = None

    def changed(self, **attributes: Any) -> "Operation":
        """The same operation with other operands, or run in another way."""
        new, operands = copy.copy(self), attributes.get("operands", self.operands)
        traced = [(o, o.value) for o in operands if o.value is not None]
        vars(new).update(attributes, _traced=traced, _contraction=None, signals=None)
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
