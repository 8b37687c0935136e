"""Relevance that is propagated from the score by layer-wise relevance propagation."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from torch import Tensor

from captum_transformer.account import Account
from captum_transformer.attr.accounting import AccountableMethod
from captum_transformer.attr.transformer_method import START, scaled_back, seed
from captum_transformer.rules import relevance
from captum_transformer.rules.flow.apart import require_own_samples
from captum_transformer.rules.ledger import Ledger, added_up
from captum_transformer.rules.propagate import conserved, propagate
from captum_transformer.rules.relevance.rule import Entry, Table
from captum_transformer.rules.relevance.sparsity import sparsity_from
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.value import Value


def propagated_relevance(
    forward: TracedForward,
    selected: Tensor,
    value: Value,
    wanted: Sequence[Value],
    changed: Mapping[Kind, Entry] = MappingProxyType({}),
) -> dict[Value, Tensor]:
    """Returns the relevance that reaches some values of the forward pass from a start of one.

    For a contrast it is the difference of the relevance of two scores, each propagated separately.
    Together they would start with a sum of zero, and normalised additions rescale to the sum that
    arrives.
    """
    found, *rest = (
        scaled_back(reached)
        for reached, _ in _propagated(forward, selected, value, wanted, changed)
    )
    for other in rest:
        found = {value: found[value] - other[value] for value in found}
    return found


def relevance_account(
    method: AccountableMethod,
    forward: TracedForward,
    selected: Tensor,
    value: Value,
    changed: Mapping[Kind, Entry] = MappingProxyType({}),
) -> Account:
    """Returns the account of the propagation to the inputs; for a contrast, of the difference."""
    account, *rest = (
        method.written_up(forward, ledger, added_up(ledger.started) / START)
        for _, ledger in _propagated(forward, selected, value, forward.values, changed)
    )
    for other in rest:
        account = account - other
    return account


def _propagated(
    forward: TracedForward,
    selected: Tensor,
    value: Value,
    wanted: Sequence[Value],
    changed: Mapping[Kind, Entry],
) -> Iterator[tuple[dict[Value, Tensor], Ledger]]:
    """Yields the relevance from the score, and its ledger, once for each side of a contrast."""
    forward.history(value).warn_of_rounding(selected.dtype)
    tape = forward.tape
    for side, seeds in starts(forward, selected, value):
        rules = rules_from(forward, side) | changed
        found, ledger = conserved(tape, seeds, rules, wanted)
        require_own_samples(partial(propagate, tape, rule=rules, wanted=wanted), seeds, found)
        yield found, ledger


def rules_from(forward: TracedForward, side: Value) -> Table:
    """Returns the rules for relevance that starts at a value."""
    return relevance.with_sparsity(sparsity_from(side, forward.tape), forward.for_all_targets)


def starts(
    forward: TracedForward, selected: Tensor, value: Value
) -> Iterator[tuple[Value, dict[Value, Tensor]]]:
    """Yields where relevance starts: each side of a contrast, and each sign of weights."""
    if (combined := forward.combined(value)) is not None:
        dtype = accumulation_dtype(selected.dtype)
        for weights in combined.sides:
            yield combined.value, {combined.value: weights.to(dtype) * START}
        return
    operation = value.operation
    contrast = operation is not None and operation.kind is Kind.CONTRAST
    for side in [v for _, v in operation.traced()] if operation and contrast else [value]:
        yield side, seed(forward, selected, side, start=START)
