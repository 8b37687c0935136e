"""Activations written in Python: a signal times a gate made, entry by entry, of it alone."""

from collections.abc import Callable

from captum_transformer.trace.kinds import ENTRIES_ALONE, Kind
from captum_transformer.trace.operation import Operation, Value
from captum_transformer.trace.statistics import is_gate_by_formula


def is_gate(gate: Value, signal: Value) -> bool:
    """Says whether ``signal * gate`` is one activation f(x), as ``x * sigmoid(x)``.

    That is so if the signal is a constant multiple of a value x, and the gate was made of x alone
    by operations that treat each entry by itself.
    """
    return _have_source(gate, signal, lambda operation: operation.kind in (Kind.MUL, Kind.DIV))


def are_of_one_entry(gate: Value, signal: Value) -> bool:
    """Says whether both were made, entry by entry, of one value alone."""
    return _have_source(gate, signal, works_by_entry)


def splits_activation(operation: Operation) -> bool:
    """Says whether it gates a product by one of its factors, as ``y * x * sigmoid(x)``."""
    (_, first), (_, second) = operation.traced()
    for product, gate in ((first, second), (second, first)):
        made = product.operation
        if made is None or made.kind not in (Kind.MUL, Kind.PRODUCT) or is_gate(product, gate):
            continue
        factors = [value for _, value in made.traced()] if works_by_entry(made) else []
        if len(factors) > 1 and any(is_gate(gate, value) for value in factors):
            return is_gate_by_formula(gate) and not is_gate(gate, product)
    return False


def works_by_entry(operation: Operation) -> bool:
    """Whether each entry of the output is made of the signals' entries at its own place alone."""
    if operation.kind in ENTRIES_ALONE:
        return True
    product = operation.contraction()
    return product is not None and all(
        product.of(operand) == product.output for operand, _ in operation.traced()
    )


def _have_source(gate: Value, signal: Value, passes: Callable[[Operation], bool]) -> bool:
    source = signal
    while not _made_by_entry(gate, source):
        operation = source.operation
        if operation is None or not passes(operation):
            return False
        (_, before), *others = operation.traced()
        if others or before.shape != source.shape:
            return False
        source = before
    return True


def _made_by_entry(value: Value, source: Value) -> bool:
    pending, seen = [value], {source}
    while pending:
        part = pending.pop()
        if part in seen:
            continue
        seen.add(part)
        operation = part.operation
        if part.shape != source.shape or part.index < source.index or operation is None:
            return False
        if not works_by_entry(operation):
            return False
        pending += [operand for _, operand in operation.traced()]
    return True
