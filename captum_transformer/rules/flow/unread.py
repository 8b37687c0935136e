"""Why operations that mix tokens are refused where they cannot be read as attention."""

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.propagate import unsupported
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.probabilities import CUT_PROBABILITIES, applies_cut_probabilities


def unread(operation: Operation) -> UnsupportedOperationError:
    """The error for operations that mix tokens but cannot be read as attention."""
    if applies_cut_probabilities(operation):
        return unsupported(operation, f"it {CUT_PROBABILITIES}")
    if operation.kind is Kind.UNKNOWN:
        return unsupported(operation, "it is not in the table of operations")
    if operation.kind is Kind.MUL:
        return unsupported(
            operation,
            "softmax weights multiply a signal, and the product is not summed over what they are "
            "weights of, so what its branch adds would be lost",
        )
    mixed = "several signals" if len(operation.traced()) > 1 else "a signal"
    return unsupported(
        operation,
        f"it mixes {mixed}, and which of their tokens it mixes is not known (attention must be a "
        "softmax over keys applied to values), so what its branch adds would be lost",
    )
