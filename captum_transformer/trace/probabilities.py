"""What softmax probabilities were made from, and how they are used."""

from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.products import factors_of
from captum_transformer.trace.statistics import signal_of, softmax_dim
from captum_transformer.trace.value import Value
from captum_transformer.trace.walks import found_behind


def scores_of(probabilities: Value | None) -> Operation | None:
    """Returns the product of queries and keys from which probabilities were made, or None.

    Heads may be mixed after this product, both before and after the softmax.
    """
    steps = back_to_scores(probabilities)
    return steps[-1][0] if steps else None


def back_to_scores(probabilities: Value | None) -> list[tuple[Operation, Value]]:
    """Returns the operations from probabilities back to their scores, with what each has made.

    The list is empty if no product has made the scores. Where terms of scores are added, those that
    two signals made count, in whichever order.
    """
    pending = [] if probabilities is None else [(probabilities, -1)]
    steps, seen, end = list[tuple[Operation, Value, int]](), set[Value](), -1
    while pending:
        value, after = pending.pop()
        operation = value.operation
        if operation is None or value in seen:
            continue
        seen.add(value)
        steps.append((operation, value, after))
        carried = [source for _, source in operation.carried()]
        if factors_of(operation, value) is not None and not _mixes_heads(operation):
            of_two = len(carried) > 1
            end = len(steps) - 1 if of_two or end < 0 else end
            if of_two:
                break
            continue
        weights = [source for source in carried if source.keys is not None or source.is_cut]
        # A softmax by hand divides by a sum over the keys, in which they aren't apart any more.
        apart = [source for source in carried if not source.is_denominator]
        pending += [(source, len(steps) - 1) for source in reversed(weights[:1] or apart)]
    way = list[tuple[Operation, Value]]()
    while end >= 0:
        operation, value, end = steps[end]
        way.append((operation, value))
    return way[::-1]


def _mixes_heads(operation: Operation) -> bool:
    """Whether a product multiplies probabilities, or scores with constants."""
    sources = [value for _, value in operation.traced()]
    if any(value.keys is not None or value.is_cut for value in sources):
        return True
    if len(sources) != 1:
        return False
    made = sources[0].operation
    while made is not None and len(made.traced()) == 1:
        if made.kind not in MOVES and made.kind not in BY_ENTRY:
            return False
        made = made.traced()[0][1].operation
    return made is not None and made.kind is Kind.PRODUCT and made.attention is None


def is_weighted_signal(value: Value) -> bool:
    """Whether a value was made by multiplying softmax weights with a signal."""
    return any(found_behind(value, _weighted))


def _weighted(value: Value) -> list[Value] | bool:
    """Returns whether softmax weights were multiplied with a signal, or what to look at next."""
    operation = value.operation
    if operation is None or softmax_dim(operation) is not None:
        return False
    traced = operation.traced()
    are_signals = signal_of(operation) or [True] * len(traced)
    sources = [v for (_, v), is_one in zip(traced, are_signals, strict=True) if is_one]
    return sources if all(source.keys is not None for source in sources) else True
