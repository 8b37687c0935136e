"""The relevance of attention probabilities, times their gradient."""

import functools
import operator
from collections.abc import Callable, Sequence

from torch import Tensor

from captum_transformer.attr.attention_flow_method import (
    gradient_map,
    gradients_in_order,
    output_gradients,
)
from captum_transformer.attr.propagated import propagated_relevance, rules_from, starts
from captum_transformer.attr.selection import Selection
from captum_transformer.attr.transformer_method import scaled_back
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.propagate import Walk
from captum_transformer.rules.relevance.attention import attention_relevance
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.seams import GradientsInOrder


def relevance_map(
    selection: Selection, calls: Sequence[AttentionCall], *, weighted: bool
) -> MapBlock:
    """The positive relevance of the attention probabilities, times their gradient if weighted."""
    forward, selected, value = selection.forward, selection.selected, selection.value
    found = gradients_in_order(selection, calls) if weighted else None
    if found is not None:
        forward.history(value).warn_of_rounding(selected.dtype)
        in_order = _InOrder(selection, calls, found.found)
        if selection.checks is not None:
            selection.checks.append(in_order.check)
        return _positive(in_order.at, gradient_map(found))
    if weighted:
        forward.require_slopes(selected, [call.edge for call in calls])
    reached = propagated_relevance(forward, selected, value, [call.output for call in calls])
    # After relevance, which needs more memory: there are no gradients to keep meanwhile.
    gradients = gradient_map(output_gradients(forward, selected, calls)) if weighted else None
    return _positive(lambda call: reached[call.output], gradients)


def _positive(
    relevance_at: Callable[[AttentionCall], Tensor], gradients: MapBlock | None
) -> MapBlock:
    def block(call: AttentionCall, rows: slice) -> Tensor:
        # The gradient first: a block that is recomputed for it also serves the relevance.
        of_call = None if gradients is None else gradients(call, rows)
        result = attention_relevance(call, relevance_at(call), rows)
        return (result if of_call is None else result.mul_(of_call)).relu_()

    return block


class _InOrder:
    """The relevance at the outputs of attention calls, propagated along with the gradient.

    Args:
        selection: the scores that are explained.
        calls: the attention calls.
        gradients: the gradients at the outputs, which report when a block is left.
    """

    def __init__(
        self, selection: Selection, calls: Sequence[AttentionCall], gradients: GradientsInOrder
    ) -> None:
        self._selection, self._calls, self._gradients = selection, calls, gradients
        self._here: dict[AttentionCall, Tensor] = {}
        self._walks = self._started()
        self._starts = gradients.starts
        gradients.leaving = self._leave

    def _started(self) -> list[Walk]:
        forward, selected, value = self._selection[:3]
        outputs = [call.output for call in self._calls]
        return [
            Walk(forward.tape, seeds, rules_from(forward, side), outputs)
            for side, seeds in starts(forward, selected, value)
        ]

    def _leave(self, place: int) -> None:
        """Propagates through the rest of a block while it is in memory."""
        self._here.clear()
        for walk in self._walks:
            walk.down_to(place)

    def at(self, call: AttentionCall) -> Tensor:
        """Returns the relevance at the output of a call."""
        if self._starts != self._gradients.starts:
            self._starts, self._walks = self._gradients.starts, self._started()
        if call not in self._here:
            parts = []
            for walk in self._walks:
                walk.down_to(call.operation.index)
                parts.append(scaled_back({call.output: walk.taken(call.output)})[call.output])
            self._here[call] = functools.reduce(operator.sub, parts)
        return self._here[call]

    def check(self) -> None:
        """Raises an error if a rule passed on a different sum than it got, without reporting it."""
        self._gradients.leaving = None  # they refer to each other
        for walk in self._walks:
            walk.down_to(0)
            walk.arrived()
        if not all(walk.ledger.balances() for walk in self._walks):
            forward, selected, value = self._selection[:3]
            propagated_relevance(forward, selected, value, [call.output for call in self._calls])
