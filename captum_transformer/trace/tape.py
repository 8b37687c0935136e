"""The tape: every operation of a forward pass that the inputs reach, in order.

The model runs natively; the tape only records what ran and does not change any number.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_transformer.calling.refusals import reads_sharded
from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace.functions import Function, describe
from captum_transformer.trace.kinds import MOVES, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.roots import Roots
from captum_transformer.trace.storages import memory_of
from captum_transformer.trace.value import Value
from captum_transformer.trace.writes import WRITE_VIEW, is_hook

Derived = TypeVar("Derived")
# Learned queries that have attended remain tokens where they are added to or joined with signals.
_JOINS = MOVES | {Kind.ADD, Kind.SUB}


class Tape:
    """Records operations and knows, for each living tensor, which value it holds.

    Args:
        keep: the kinds of operation whose operands' data is kept.
        lay_out: called with the operations so far; sets where axes lie in the last one's outputs.

    Attributes:
        on_write: called with each tensor that is about to be written into.
        lends_weights: whether the model has its weights only while a module runs, as if sharded.
        on_record: called with each operation that the trace itself adds.
    """

    def __init__(self, keep: frozenset[Kind], lay_out: Callable[[list[Operation]], None]) -> None:
        self.keep = keep
        self._lay_out = lay_out
        self.on_write: Callable[[Tensor], None] | None = None
        self.lends_weights = False
        self.on_record: Callable[[Operation], None] | None = None
        self.operations: list[Operation] = []
        self.values = 0
        self._held: dict[int, Value] = {}
        self._kept: dict[int, list[Operand]] = {}
        self._aside: dict[int, tuple[weakref.ref[Tensor], Operation]] = {}
        self._roots = Roots()
        self._derived: dict[Any, Any] = {}

    def new_value(self, tensor: Tensor) -> Value:
        """Creates a new value that this tensor holds from now on."""
        value = self._held[id(tensor)] = Value(self.values, tensor)
        self.values += 1
        return value

    def held_by(self, tensor: Any) -> Value | None:
        """Returns the value last recorded for a tensor, even if it was written into since."""
        value = self._held.get(id(tensor))
        return value if value is not None and value.holder() is tensor else None

    def release(self, tensor: Tensor) -> None:
        """Marks that a tensor no longer holds anything that the inputs reach."""
        self._held.pop(id(tensor), None)

    def add_root(self, tensor: Tensor) -> None:
        """Remembers where the inputs enter the autograd graph."""
        if tensor.requires_grad:
            self._roots.add(tensor)

    def find(self, tensor: Tensor) -> Value | None:
        """Returns the value that a tensor holds, or None if the inputs don't reach it."""
        value = self._held.get(id(tensor))
        if value is not None and value.holder() is tensor:
            return value if value.version == tensor._version else self._reread(tensor)
        if not tensor.requires_grad or tensor.grad_fn is None:
            return None
        passed_on = self._passed_on(tensor)
        if passed_on is None:
            self._roots.require_none_behind(tensor)
        return passed_on

    def find_without_gradient(self, tensor: Tensor) -> Value | None:
        """Returns the value last recorded for a tensor, for code where gradients are off.

        Signals are detached there, so it does not matter whether the trace can follow them.
        """
        value = self.held_by(tensor)
        if value is None:
            return self._passed_on(tensor) if tensor.requires_grad else None
        return self.find(tensor) if value.holds_ids else value

    def set_aside(self, operation: Operation, view: Tensor) -> None:
        """Keeps a view of a signal that autograd does not know of yet.

        A custom function returns its input as such a view, and gives it a derivative afterwards.
        """
        self._aside[id(view)] = weakref.ref(view), operation

    def _passed_on(self, tensor: Tensor) -> Value | None:
        """Returns the value of a tensor that only went through a hook's identity, or None."""
        holder, operation = self._aside.get(id(tensor), (None, None))
        node: Any = type(tensor.grad_fn)
        known = holder is not None and holder() is tensor
        if operation is None or not known or not is_hook(node):
            return None
        del self._aside[id(tensor)]
        for operand in operation.operands:
            operand.value = self.find(operand.given)
        self.settle(operation.operands, keep=operation.kind in self.keep)
        operation.index = len(self.operations)
        self._append_own(operation, [tensor])
        return self.held_by(tensor)

    def operand(self, tensor: Tensor, value: Value | None, *, keep: bool) -> Operand:
        """Creates an operand; if its data is kept, writes into the tensor will not change it."""
        operand = Operand(tensor, value)
        self.settle([operand], keep=keep)
        return operand

    def settle(self, operands: Sequence[Operand], *, keep: bool) -> None:
        """Keeps or releases the operands' data; the data of constants is always kept."""
        for operand in operands:
            if not keep and operand.value is not None:
                operand.data = None
                continue
            tensor = operand.given
            operand.data = tensor.detach()
            if self.lends_weights and operand.value is None:
                _keep_lent(operand)
            if type(tensor) is not torch.nn.Parameter:
                for key in memory_of(tensor):
                    self._kept.setdefault(key, []).append(operand)

    def before_write(self, tensor: Tensor) -> None:
        """Copies the data that operands keep in memory that is about to be written into."""
        if self.on_write is not None:
            self.on_write(tensor)
        for key in memory_of(tensor):
            for operand in self._kept.pop(key, ()):
                if operand.data is not None:
                    operand.data = operand.data.clone()

    def after_write(self, tensor: Tensor) -> None:
        """Records a write into a view as a write into its base."""
        base = tensor._base
        if base is None:
            return
        source = self.find(tensor)
        old = self.held_by(base)
        if old is None and tensor.numel() < base.numel():
            # The base may never have been seen: a linear layer's output of 3 dimensions is a view.
            for value in list(self._held.values()):
                other = value.holder()
                if other is not None and other is not tensor and other._base is base:
                    self._write_into_base(base, other, value)
            old = self.held_by(base)
        if source is not None or old is not None:
            self._write_into_base(base, tensor, source)

    def _write_into_base(self, base: Tensor, tensor: Tensor, source: Value | None) -> None:
        """Records what a view holds as a part of what its base holds from now on."""
        layout = (tensor.shape, tensor.stride(), _offset(tensor, base))
        background = self.operand(base.detach(), self.held_by(base), keep=False)
        patch = self.operand(tensor, source, keep=False)
        known = tuple(None if o.value is None else o for o in (background, patch))
        args = (*known, tuple(base.shape), *layout, base.stride())
        self.record(WRITE_VIEW, args, [o for o in known if o is not None], [base])

    def _reread(self, tensor: Tensor) -> Value | None:
        """The value of a view whose memory was written through another tensor."""
        base = tensor._base
        source = self.find(base) if base is not None and self.held_by(base) is not None else None
        if base is None or source is None:
            raise UnseenOperationError(
                f"A tensor of shape {tuple(tensor.shape)} was written into where the trace can't "
                "see it: through `.data` or `detach()`, inside a custom `autograd.Function`, or by "
                "compiled code. Write it with ordinary torch functions."
            )
        operand = self.operand(base, source, keep=False)
        args = (operand, tensor.shape, tensor.stride(), _offset(tensor, base))
        self.record(describe(torch.as_strided), args, [operand], [tensor])
        return self.held_by(tensor)

    def record(
        self,
        function: Function,
        args: tuple[Any, ...],
        operands: list[Operand],
        results: Sequence[Tensor | None],
    ) -> Operation:
        """Records an operation that the trace itself adds."""
        operation = Operation(len(self.operations), function, function.kind, args, {}, operands)
        self._append_own(operation, results)
        return operation

    def _append_own(self, operation: Operation, results: Sequence[Tensor | None]) -> None:
        self.append(operation, results)
        if self.on_record is not None:
            self.on_record(operation)

    def append(self, operation: Operation, results: Sequence[Tensor | None]) -> None:
        """Records an operation; each result that is a tensor becomes a new value."""
        self.operations.append(operation)
        ancestors = attention = 0
        learned = True
        for _, value in operation.traced():
            ancestors |= value.ancestors | 1 << value.index
            attention |= value.attention
            learned = learned and value.learned
        if operation.kind in _JOINS:
            for operand in operation.operands:
                attention |= 0 if operand.tokens is None else operand.tokens.attention
        for result in results:
            if result is None:
                operation.outputs.append(None)
                continue
            value = self.new_value(result)
            value.operation = operation
            value.ancestors, value.attention = ancestors, attention
            value.learned = learned
            operation.outputs.append(value)
        self._lay_out(self.operations)

    def derived(self, build: "Callable[[Tape], Derived]") -> Derived:
        """Returns what ``build`` makes from the tape; it is built once for all passes."""
        if build not in self._derived:
            self._derived[build] = build(self)
        result: Derived = self._derived[build]
        return result

    def clear(self) -> None:
        """Forgets everything at once: values and operations refer to each other in cycles.

        Otherwise a whole forward pass's memory would wait for the garbage collector.
        """
        for operation in self.operations:
            operation.clear()
        self.operations.clear()
        self.on_record = None
        self._derived.clear()
        self._held.clear()
        self._kept.clear()
        self._aside.clear()
        self._roots.clear()


def _keep_lent(operand: Operand) -> None:
    """Copies a constant whose memory may be freed; for a matrix, raises once a rule reads it.

    Constants that are added to tokens, or multiply their features, are small next to matrices.
    """
    if operand.role is not Role.WEIGHT or len(operand.size) < 2:
        operand.data = operand.given.clone()
        return

    def refuse() -> None:
        raise reads_sharded(f"A weight of shape {tuple(operand.size)}")

    operand.data, operand.again = None, refuse


def _offset(view: Tensor, base: Tensor) -> int:
    """Returns where a view begins in its base."""
    return int(view.storage_offset() - base.storage_offset())
