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

_PRODUCT = Kind.PRODUCT


class Operand:
    """A tensor argument of a recorded operation, with what is needed to replay it.

    The data is kept only if a rule may need it, and later writes into the tensor don't change it.

    Args:
        tensor: the argument, held until it is known whether its data is kept.
        value: the value that the tensor holds, or None if the inputs don't reach it.
        role: what the operation uses the tensor for.

    Attributes:
        size, dtype, device: of the tensor.
        tokens: the value of learned queries that have attended to each other, if they are next to
            signals: they count as a constant there, but are still tokens.
        again: recomputes the data by running earlier operations again, if it is not in memory.
    """

    __slots__ = ("again", "data", "device", "dtype", "role", "size", "tokens", "value")

    def __init__(self, tensor: Tensor, value: Value | None, role: Role = Role.SIGNAL) -> None:
        self.data: Tensor | None = tensor
        self.value = value
        self.role = role
        known = tensor if value is None else value
        try:
            self.size = known.shape
        except RuntimeError:  # a nested tensor: what is made of it and of signals is refused
            self.size = torch.Size(())
        self.dtype, self.device = known.dtype, known.device
        self.tokens: Value | None = None
        self.again: Callable[[], None] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the data is in memory or can be recomputed."""
        return self.data is not None or self.again is not None

    @property
    def shape(self) -> torch.Size:
        """The same as `size`, so that code for indices can treat operands like tensors."""
        return self.size

    @property
    def given(self) -> Tensor:
        """The data as it was when the operation ran, possibly wrapped, as quantised weights are."""
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
        """Returns the data, cast to ``dtype`` if it is floating point or a numeric signal."""
        data = self.tensor
        if data.is_floating_point() or (self.role is Role.SIGNAL and data.dtype != torch.bool):
            return data.to(dtype)
        return data


def _with_values(operands: Sequence[Operand]) -> list[tuple[Operand, Value]]:
    """The operands that the inputs reach, each with its value."""
    traced = []
    for operand in operands:  # faster than a comprehension, which is a call
        if (value := operand.value) is not None:
            traced.append((operand, value))  # noqa: PERF401
    return traced


class Operation:
    """One operation, with an `Operand` in place of each tensor in its arguments.

    It is created before the operation runs, so that rules that act during the forward pass and
    rules that walk the tape read the same description.

    Attributes:
        index: its position on the tape.
        function: the table's description of the function that it calls.
        kind: its kind, such as a product or a softmax.
        args: its arguments by position, as they were given.
        kwargs: its arguments by name, as they were given.
        operands: all tensors among its arguments.
        call: the function that runs it again, out of place.
        outputs: its output values; None for outputs that the inputs do not reach.
        result: its output, if a rule asks for it.
        edge: the position of its output in the autograd graph, if a rule asks for it.
        attention: the attention call that it makes, or None.
        pattern: how it attends, or None if it does not.
        refusal: the error that says why a method has no rule for it, raised if relevance arrives
            at its outputs.
        refused: the positions of these outputs in the autograd graph.
        module: the name of the module that ran it.
        shift: the operand of this sum on which a softmax written by hand does not depend.
        activates: whether it is a step of an activation that a rule treats as a whole.
        note: what a rule stores here for the rules of later operations.
        rule: out of several rules, the one that it ran under.
        views: the cached result of `views_of`; None before it is computed.
        signals: the operands that get shares in the token flow; None before they are determined.
    """

    __slots__ = (
        "_arguments",
        "_contraction",
        "_traced",
        "activates",
        "args",
        "attention",
        "call",
        "edge",
        "function",
        "index",
        "kind",
        "kwargs",
        "module",
        "note",
        "operands",
        "outputs",
        "pattern",
        "refusal",
        "refused",
        "result",
        "rule",
        "shift",
        "signals",
        "views",
    )

    def __init__(
        self,
        index: int,
        function: Function,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Operand],
        arguments: dict[str, Any] | None = None,
    ) -> None:
        self.index, self.function, self.kind = index, function, kind
        self.args, self.kwargs, self.operands = args, kwargs, operands
        self._arguments = arguments
        self.call: Callable[..., Any] = function.call
        self.outputs: list[Value | None] = []
        self._traced = _with_values(operands)
        self.module, self.activates = "", False
        self._forget()

    def _forget(self) -> None:
        """Resets everything that is written down after an operation is described."""
        self.refused: Sequence[GradientEdge] = ()
        self.result: Operand | None = None
        self.edge: GradientEdge | None = None
        self.attention: Any = None
        self.pattern: Pattern | None = None
        self.refusal: Exception | None = None
        self.shift: Operand | None = None
        self.views: tuple[View, ...] | None = None
        self.signals: list[tuple[Operand, Value]] | None = None
        self.note: Any = None
        self.rule: Callable[[Operation], Any] | None = None
        self._contraction: Contraction | None = None

    def changed(self, **attributes: Any) -> "Operation":
        """Returns a copy of the operation with attributes replaced, such as its operands."""
        attributes["_arguments"] = attributes.pop("arguments", self.arguments)
        attributes["_traced"] = _with_values(attributes.get("operands", self.operands))
        attributes |= {"_contraction": None, "signals": None}
        new = copy.copy(self)
        for name, attribute in attributes.items():
            setattr(new, name, attribute)
        return new

    @property
    def arguments(self) -> dict[str, Any]:
        """Its arguments under their canonical names."""
        if self._arguments is None:
            self._arguments = self.function.bind(self.args, self.kwargs)
        return self._arguments

    @property
    def asks_to_write(self) -> bool:
        """Whether an argument asks it to write into its first operand, as ``inplace=True`` does."""
        if not (self.function.takes_inplace or "inplace" in self.kwargs):
            return False
        return bool(self.arguments.get("inplace"))

    @property
    def name(self) -> str:
        """The function's bare name, for people to read."""
        return self.function.name

    @property
    def described(self) -> str:
        """A description of the operation and its module, for error messages."""
        shapes = [tuple(value.shape) for _, value in self.traced()]
        where = f" in `{self.module}`" if self.module else ""
        return f"`{self.name}`{where}, on tensors of shapes {shapes}"

    @property
    def form(self) -> Form | None:
        """The function applied to each entry: an exponential if only the exponent is traced."""
        exponent = self.arguments.get("exponent")
        if not isinstance(exponent, Operand) or exponent.value is None:
            return self.function.entry.form
        return Form.EXPONENTIAL if len(self.traced()) == 1 else None

    def argument(self, name: str, default: Any = None) -> Any:
        """Returns the argument with a canonical name, or ``default`` if it was not given."""
        return self.arguments.get(name, default)

    def along(self, ndim: int) -> tuple[int, ...] | None:
        """Returns the dimensions that it works along, from the front, or None if not known."""
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
        """Returns the dimension that it works along, or None if there is not exactly one."""
        dims = self.along(ndim)
        return dims[0] if dims is not None and len(dims) == 1 else None

    def traced(self) -> list[tuple[Operand, Value]]:
        """The operands that the inputs reach, each with its value."""
        return self._traced

    @property
    def spreads(self) -> bool:
        """Whether it is a product that sums over no dimension, such as a column times a row."""
        product = self.contraction()
        return product is not None and all(
            operand.size[dim] == 1
            for operand, _ in self.traced()
            for dim in product.summed(operand)
        )

    def carried(self) -> list[tuple[Operand, Value]]:
        """Returns the operands that hold tokens, including learned queries that have attended."""
        return [(o, value) for o in self.operands if (value := o.value or o.tokens) is not None]

    def contraction(self) -> Contraction | None:
        """Returns the product that it computes, with a letter for each dimension, or None."""
        if self._contraction is None and self.kind is _PRODUCT:
            self._contraction = contraction(self)
        return self._contraction

    def clear(self) -> None:
        """Releases everything that it refers to."""
        self.args, self.kwargs, self._arguments = (), {}, {}
        self.operands, self.outputs, self._traced = [], [], []
        self._forget()

    def replay(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Runs the operation again with other tensors in place of its traced operands.

        Constants are cast to the precision of these tensors.
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
