"""Which value of a forward pass holds the tokens that an input was turned into."""

from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.attention import AttentionCall, FusedAttention
from captum_transformer.trace.functions import Kind
from captum_transformer.trace.tape import Operand, Operation, Tape, Value

_TOKEN_WISE = frozenset(
    {
        Kind.SHAPE,
        Kind.ELEMENTWISE,
        Kind.NORM,
        Kind.SOFTMAX,
        Kind.LINEAR,
        Kind.MUL,
        Kind.DIV,
        Kind.ADD,
        Kind.SUB,
        Kind.MATMUL,
        Kind.EMBEDDING,
    }
)


_WITHIN_BLOCK = frozenset(
    {Kind.SHAPE, Kind.ELEMENTWISE, Kind.SOFTMAX, Kind.MUL, Kind.DIV, Kind.ADD, Kind.MATMUL}
)


def token_value(source: Value, calls: list[AttentionCall]) -> Value:
    """The tokens that an input was turned into: the value itself for token ids and embeddings.

    Found from the first attention call whose queries (or else values) the input reaches, by going
    back through token-wise operations to the one that made the tokens, such as a patch embedding.

    Raises:
        UnsupportedOperationError: if no attention call gets tokens from the input.
    """
    for call in calls:
        for operand in (_query(call), call.value):
            value = operand.value
            if value is not None and (value is source or value.descends_from(source)):
                return _walk_back(value, source)
    raise UnsupportedOperationError(
        f"No attention call gets its queries or values from the input of shape "
        f"{tuple(source.shape)}, so it has no tokens. Use `attribute`, or pass it as one of "
        "`additional_forward_args`."
    )


def _query(call: AttentionCall) -> Operand:
    return call.query if isinstance(call, FusedAttention) else call.operation.traced()[0][0]


def _walk_back(value: Value, source: Value) -> Value:
    projected: Value | None = None
    while value is not source:
        operation = value.operation
        if operation is None or not _is_token_wise(operation):
            return value
        if operation.kind is Kind.LINEAR:
            projected = value
        parents = [v for _, v in operation.traced() if v is source or v.descends_from(source)]
        if len(parents) > 1 and operation.kind is not Kind.MATMUL:
            return value
        value = parents[0]
    return value if projected is None or _is_given_as_tokens(source) else projected


def _is_given_as_tokens(source: Value) -> bool:
    """Whether an input consists of token ids or of embeddings ``(samples, tokens, features)``."""
    return len(source.shape) == 3 or source.holds_ids


def _is_token_wise(operation: Operation) -> bool:
    if operation.kind is Kind.CONV:
        weight = operation.operands[1]
        return all(length == 1 for length in weight.size[2:])
    return operation.kind in _TOKEN_WISE


def per_token(relevance: Tensor, value: Value) -> Tensor:
    """Sums over the features of each token: ``(samples, tokens)``, a grid in row-major order."""
    if value.features is not None:
        relevance = relevance.reshape(value.features).sum(1)
    if value.samples is None or value.samples.outer != 1:
        raise UnsupportedOperationError(
            f"Can't tell the samples apart in the tokens of shape {tuple(value.shape)}; explain "
            "the samples one by one."
        )
    return relevance.reshape(value.samples.size, -1)


def projections_of(
    call: AttentionCall, tape: Tape
) -> tuple[list[Operation], list[Operation]]:
    """The linear layers of an attention block: those before its call, and the one behind it."""
    into: list[Operation] = []
    stack = [value for _, value in call.operation.traced()]
    while stack:
        operation = stack.pop().operation
        if operation is None or operation in into:
            continue
        if operation.kind is Kind.LINEAR:
            into.append(operation)
        elif operation.kind in _WITHIN_BLOCK:
            stack.extend(value for _, value in operation.traced())
    inside, out_of = {call.output}, []
    for operation in tape.operations[call.operation.index + 1 :]:
        if any(value in inside for _, value in operation.traced()):
            if operation.kind is Kind.LINEAR:
                out_of.append(operation)
            elif operation.kind in (Kind.SHAPE, Kind.ELEMENTWISE):
                inside |= {value for value in operation.outputs if value is not None}
    return into, out_of
