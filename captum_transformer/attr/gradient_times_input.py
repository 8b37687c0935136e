"""The base class of methods whose relevance is gradient x input with changed rules."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.account import INPUTS, Account, Part, Reason
from captum_transformer.attr.positional_method import PositionalMethod
from captum_transformer.attr.reached import refuse_reached
from captum_transformer.rules.constants import of_activation, of_constants
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.ledger import Taken, added_up, total
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.history import History
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value


class Point(NamedTuple):
    """A value whose relevance is wanted, its data, and its edge in autograd's graph."""

    value: Value
    data: Tensor
    edge: GradientEdge | None


class GradientTimesInput(PositionalMethod):
    """A method whose relevance is the input times the gradient, which rules may change.

    Token ids get the relevance of the embeddings that were looked up for them, summed over the
    features. Tokens that are made from an input get the relevance of all the input values that
    they were made from.
    """

    _kept_for_account = frozenset({Kind.ENTRYWISE})

    def _require_attention(self, history: History) -> None:
        """Raises an error if the method's rules apply to none of the attention calls."""
        history.require_attention()

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        selected, score = forward.select(target)
        self._require_attention(forward.history(score))
        refuse_reached(forward, selected, score)
        inner = inner_points(forward, wanted)
        found = self._gradient_times_input(forward, selected, inner)
        if not all(value in found for value in wanted):
            found = {
                value: found[value]
                if value in found
                else TokenFlow(forward.tape, {}).gathered(value, source, found[source])
                for value, source in zip(wanted, forward.values, strict=True)
            }
        if self.positions == "add":
            added = self._of_positions(forward, selected, score, wanted)
            found = {value: found[value] + added[value] for value in wanted}
        return found

    def _gradient_times_input(
        self, forward: TracedForward, selected: Tensor, inner: Sequence[Point] = ()
    ) -> dict[Value, Tensor]:
        lookups = [o for o in forward.tape.operations if o.kind is Kind.EMBEDDING]
        given = zip(forward.values, forward.inputs, forward.edges, strict=True)
        points = [Point(*of) for of in given if of[2] is not None] + list(inner)
        edges = [point.edge for point in points if point.edge is not None]
        edges += [operation.edge for operation in lookups if operation.edge is not None]
        gradients = forward.gradients(selected, edges)
        relevance = {
            value: tensor.detach() * slope_at(tensor, gradients.pop(0))
            for value, tensor, _ in points
        }
        seeds: dict[Value, Tensor] = {}
        for operation, gradient in zip(lookups, gradients, strict=True):
            if gradient is not None:
                seeds |= _embedded(operation, gradient)
        ids = [value for value in forward.values if value.holds_ids]
        if seeds:
            relevance |= TokenFlow(forward.tape, {})(seeds, ids)
        else:
            relevance |= {value: selected.new_zeros(value.shape) for value in ids}
        return relevance

    def _account(self, forward: TracedForward, target: Any) -> Account:
        """Accounts for the difference between gradient x input and the score.

        A constant that is added to a signal gets its own value times the gradient there; the rest
        goes to activations, and to products and norms that have no factor held constant.
        """
        selected, value = forward.select(target)
        self._require_attention(forward.history(value))
        refuse_reached(forward, selected, value)
        score = selected.detach().to(accumulation_dtype(selected.dtype))
        at_inputs = self._gradient_times_input(forward, selected)
        parts = [
            Part(INPUTS, name, total(value, at_inputs[value]))
            for name, value in zip(forward.names, forward.values, strict=True)
        ]
        operations = [o for o in forward.tape.operations if o.edge is not None]
        edges = [operation.edge for operation in operations if operation.edge is not None]
        taken: list[Taken] = []
        for operation, gradient in zip(operations, forward.gradients(selected, edges), strict=True):
            if gradient is None:
                continue
            slope = gradient.to(accumulation_dtype(gradient.dtype))
            taken += of_constants(operation, slope)
            if not forward.has_rule_for(Kind.ENTRYWISE):  # with a rule, nothing is lost
                taken += of_activation(operation, slope)
        parts += self._parts(taken)
        rest = added_up([score, *(-part.amount for part in parts)])
        parts.append(Part(Reason.REST.value, _listed(forward, operations), rest))
        return Account(type(self).__name__, score, tuple(parts))


def slope_at(tensor: Tensor, gradient: Tensor | None) -> Tensor:
    """Returns the gradient at a tensor in the tensor's shape, or zeros if there is none."""
    dtype = accumulation_dtype(tensor.dtype)
    if gradient is None:
        return torch.zeros_like(tensor, dtype=dtype)
    return gradient.to(dtype).reshape(tensor.shape)


def inner_points(forward: TracedForward, wanted: Sequence[Value]) -> list[Point]:
    """Returns the points of wanted values that are tensors of layers or outputs of attention."""
    known = {
        inner.value: Point(inner.value, inner.operand.tensor, inner.edge)
        for tensors in forward.layers
        for inner in tensors
    }
    for value in wanted:
        operation = value.operation
        if operation is not None and operation.attention is not None and operation.result:
            known.setdefault(value, Point(value, operation.result.tensor, operation.edge))
    return [known[value] for value in wanted if value in known and value not in forward.values]


def _embedded(operation: Operation, gradient: Tensor) -> dict[Value, Tensor]:
    output, result = operation.outputs[0], operation.result
    if output is None or result is None:
        raise RuntimeError("the output of an embedding is always kept")
    dtype = accumulation_dtype(gradient.dtype)
    return {output: result.tensor.to(dtype) * gradient.to(dtype)}


# Operations that are not linear in their signals, if none of these is held constant.
_NOT_LINEAR = frozenset(
    {Kind.SOFTMAX, Kind.LOG_SOFTMAX, Kind.NORM, Kind.RECIPROCAL, Kind.ATTENTION, Kind.MAXIMUM}
    | {Kind.DISTANCE, Kind.DERIVED, Kind.SMOOTH_MAXIMUM, Kind.SAMPLE, Kind.SOLVE}
)


def _listed(forward: TracedForward, operations: Sequence[Operation]) -> str:
    """Names the operations that may take the rest, such as products of signals."""
    names = {
        operation.name: None
        for operation in operations
        if operation.kind in _NOT_LINEAR or len(operation.traced()) > 1
        if operation.kind is not Kind.NORM or not forward.has_rule_for(Kind.NORM)
        if operation.kind not in (Kind.ADD, Kind.SUB, Kind.CONCATENATE, Kind.STACK)
    }
    return ", ".join(names) or "rounding"
