"""Which value of a forward pass holds the tokens that an input was turned into."""

import math
from collections.abc import Sequence

from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.arrangement import Arrangement, arrangement
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.features import feature_dims, is_linear_layer, keeps_features
from captum_transformer.trace.heads import heads_merged_by, steps_to
from captum_transformer.trace.history import History
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.statistics import signal_of
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

_TOKEN_WISE = MOVES | (BY_ENTRY - {Kind.RECIPROCAL}) | {Kind.PRODUCT, Kind.EMBEDDING}
_WITHIN_BLOCK = MOVES | {
    Kind.COPY,
    Kind.ENTRYWISE,
    Kind.HOMOGENEOUS,
    Kind.SOFTMAX,
    Kind.MUL,
    Kind.DIV,
    Kind.ADD,
    Kind.SUB,
    Kind.PRODUCT,
}


def token_value(source: Value, history: History) -> Value:
    """Returns the tokens that an input was turned into: itself for token ids and embeddings.

    They are found from the first attention call whose queries (or else values) the input reaches,
    by going back through token-wise operations to the one that made the tokens, such as a patch
    embedding, and further back if the input also bypasses these tokens, as by a skip connection.

    Raises:
        UnsupportedOperationError: if no attention call gets tokens from the input, or if the input
            is turned into tokens more than once.
    """
    if source.holds_ids:
        return source
    entering = [
        value
        for call in history.layers()
        for value in (query_value(call), call.value.value)
        if value is not None and (value is source or value.descends_from(source))
    ]
    if not entering:
        raise UnsupportedOperationError(
            f"No attention call gets its queries or values from the input of shape "
            f"{tuple(source.shape)}, so it has no tokens. Use `attribute`, or pass it as one of "
            "`additional_forward_args`."
        )
    if _walk_back(entering[0], source, past_neighbours=True) is source:
        return source
    tokens = _walk_back(entering[0], source)
    while tokens is not source:
        past = next((value for value in entering if not _is_of(value, tokens)), None)
        if past is None:
            past = _past(tokens, source, history)
        if past is None:
            return tokens
        common = _common(tokens, past, source)
        # Tokens that were repeated to several streams are tokens there, but the streams are not.
        tokens = _walk_back(common, source, projected=True)
        if tokens is source is not common:
            return source
    if any(_walk_back(value, source) is source for value in entering):
        return source
    raise UnsupportedOperationError(
        f"The input of shape {tuple(source.shape)} is turned into tokens more than once, or what "
        "attention reads of it is not all that the score depends on, as in a model of two "
        "branches, where a model runs twice, or where several streams are read as one. Use "
        "`attribute`, which sums up over all of them."
    )


def _is_of(value: Value, tokens: Value) -> bool:
    return value is tokens or value.descends_from(tokens)


def _past(tokens: Value, source: Value, history: History) -> Value | None:
    """Returns a value made from the input, but not the tokens, that meets one made from them."""
    start = 0 if tokens.operation is None else tokens.operation.index + 1
    for operation in history.operations:
        values = [value for _, value in operation.traced()]
        if (
            operation.index < start
            or len(values) < 2
            or not any(_is_of(value, tokens) for value in values)
        ):
            continue
        signal = signal_of(operation) or [True] * len(values)
        for value, is_signal in zip(values, signal, strict=True):
            if is_signal and _is_of(value, source) and not _is_of(value, tokens):
                return value
    return None


def _common(one: Value, other: Value, source: Value) -> Value:
    """Returns the last value from which everything in two other values comes."""
    frontier = {one, other}
    while len(frontier) > 1:
        latest = max(frontier, key=lambda value: value.index)
        frontier.remove(latest)
        if latest.operation is None:
            raise RuntimeError("only values that descend from the source are walked through")
        frontier.update(_parents(latest.operation, source))
    (found,) = frontier
    return found


def _walk_back(
    value: Value, source: Value, *, projected: bool = False, past_neighbours: bool = False
) -> Value:
    """Returns the last value that everything passes through before tokens are made.

    Args:
        value: the value that enters attention.
        source: the input from which it was made.
        projected: whether its features are known to be those of tokens.
        past_neighbours: whether tokens that mix in their neighbours still count as the same tokens.
    """
    frontier, tokens, kept = {value}, value, source.features is not None
    embedded: Value | None = None
    while source not in frontier:
        if len(frontier) == 1:
            (tokens,) = frontier
        latest = max(frontier, key=lambda v: v.index)
        frontier.remove(latest)
        operation = latest.operation
        if operation is None:
            raise RuntimeError("only values that descend from the source are walked through")
        # The mean of the tokens may be one more token, as in CLIP's attention pooling.
        goes_on = (
            _is_token_wise(operation)
            or (operation.kind is Kind.MEAN and frontier)
            or (past_neighbours and _keeps_places(operation))
        )
        if not goes_on and (projected or operation.kind is not Kind.CONV):
            return tokens
        linear = is_linear_layer(operation)
        projected = projected or linear or operation.kind in CONVOLUTIONS
        if linear and not frontier:
            embedded = latest
        kept = kept and keeps_features(operation, latest)
        frontier.update(_parents(operation, source))
    # Patches may be cut out by rearranging pixels, which aren't tokens before they are projected.
    return source if kept else embedded or tokens


def _parents(operation: Operation, source: Value) -> list[Value]:
    """Returns what an operation's tokens come from; the queries, for a product with keys."""
    values = [value for _, value in operation.traced()]
    signal = signal_of(operation)
    if signal is not None:
        values = [value for value, is_signal in zip(values, signal, strict=True) if is_signal]
    parents = [value for value in values if value is source or value.descends_from(source)]
    return parents[:1] if operation.kind is Kind.PRODUCT else parents


def _is_token_wise(operation: Operation) -> bool:
    if operation.kind in CONVOLUTIONS:
        weight = operation.argument("weight")
        return all(length == 1 for length in weight.size[2:])
    return operation.kind in _TOKEN_WISE


def _keeps_places(operation: Operation) -> bool:
    """Whether it sums up neighbours and there are as many places as before."""
    (_, value), *_ = operation.traced()
    output = operation.outputs[0]
    if output is None or operation.kind not in (Kind.CONV, Kind.POOL):
        return False
    if operation.kind is Kind.POOL:
        return output.shape == value.shape
    places = 2 - len(operation.argument("weight").size)
    return output.shape[places:] == value.shape[places:]


def per_token(relevance: Tensor, value: Value) -> Tensor:
    """Sums over the features of each token: ``(samples, tokens)``, a grid in row-major order.

    Token ids have no features: each keeps its own number, in the ids' own shape.
    """
    if value.holds_ids:
        return relevance
    if value.features is None:
        raise UnsupportedOperationError(
            f"Which entries are one token's features is not known in the tokens of shape "
            f"{tuple(value.shape)}. Use `attribute`, and sum over the features yourself."
        )
    arranged = _arranged(value, value.features)
    if arranged is None:
        raise UnsupportedOperationError(
            f"Can't tell the samples apart in the tokens of shape {tuple(value.shape)}; explain "
            "the samples one by one."
        )
    return arranged.apart(relevance).sum(2)


def spread_over_tokens(shares: Tensor, value: Value) -> Tensor:
    """Spreads one share per token, ``(sets, tokens)``, evenly over the token's features.

    The inverse of `per_token`, also if each sample has several sets of tokens, such as windows.
    """
    features, heads = value.features or (), heads_merged_by(steps_to(value))
    layout = [1 if dim in feature_dims(value) else n for dim, n in enumerate(value.shape)]
    if value.learned and len(layout) > 3 and layout[2:] == [shares.shape[1], 1]:
        heads = [Axis.of(value.shape, 1)]  # what enters attention has the call's layout
    arranged = None if heads is None else _arranged(value, (*features, *heads))
    if arranged is None or math.prod(arranged.counts[:2]) != shares.numel():
        raise UnsupportedOperationError(
            f"Can't tell samples, tokens and features apart in a tensor of shape "
            f"{tuple(value.shape)} that holds {tuple(shares.shape)} samples and tokens. Use "
            "`propagation='flow'`."
        )
    samples, tokens, width = arranged.counts
    shares = shares.reshape(samples, tokens, 1) / width
    return arranged.together(shares.expand(-1, -1, width), value.shape)


def _arranged(value: Value, features: Sequence[Axis]) -> Arrangement | None:
    """Returns how samples, tokens and features lie in a value, or None if that is unknown."""
    if value.samples is None:
        return None
    return arrangement(tuple(value.shape), (value.samples,), tuple(features))


def projections_of(call: AttentionCall, tape: Tape) -> tuple[list[Operation], list[Operation]]:
    """Returns the linear layers of an attention block: those before and those after its call."""
    into: list[Operation] = []
    stack, seen = [value for _, value in call.operation.traced()], set[Operation]()
    while stack:
        operation = stack.pop().operation
        if operation is None or operation in seen:
            continue
        seen.add(operation)
        if is_linear_layer(operation):
            into.append(operation)
        elif operation.kind in _WITHIN_BLOCK:
            stack.extend(value for _, value in operation.traced())
    inside, out_of = {call.output}, []
    for operation in tape.operations[call.operation.index + 1 :]:
        if any(value in inside for _, value in operation.traced()):
            if is_linear_layer(operation):
                out_of.append(operation)
            elif operation.kind in MOVES or operation.kind is Kind.COPY:
                inside |= {value for value in operation.outputs if value is not None}
    return into, out_of
