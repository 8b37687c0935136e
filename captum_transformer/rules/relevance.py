"""The relevance pass of Chefer et al. (CVPR 2021): layer-wise relevance propagation.

Linear maps follow the alpha-beta rule with alpha = 1, beta = 0, additions are normalised (eq. 9-10),
products of two signals follow the z-rule and share the relevance in halves, and softmax, norms and
activations pass it on unchanged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.propagate import rearranged, transposed, unsupported
from captum_transformer.rules.statistics import signal_of
from captum_transformer.trace.attention import (
    ExplicitAttention,
    FusedAttention,
    in_full,
    ratio,
)
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.functions import Kind
from captum_transformer.trace.tape import Operand, Operation

# The kinds of operation whose operands these rules need to see.
KEEP = frozenset(
    {Kind.ADD, Kind.SUB, Kind.LINEAR, Kind.CONV, Kind.MATMUL, Kind.SUM, Kind.MEAN, Kind.POOL, Kind.OTHER}
)
_PASSED_ON = frozenset(
    {Kind.ELEMENTWISE, Kind.NORM, Kind.SOFTMAX, Kind.RECIPROCAL, Kind.DROPOUT}
)


def relevance_rule(operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
    """What each traced operand gets of the relevance of an operation's outputs."""
    kind, count = operation.kind, len(operation.traced())
    if kind is Kind.SHAPE:
        return rearranged(operation, incoming)
    if kind in (Kind.POOL, Kind.OTHER) and len(operation.outputs) > 1:
        return _z_rule(operation, incoming)
    relevance = incoming[0]
    if relevance is None:
        raise unsupported(operation, "only a side output is used")
    if operation.attention is not None:
        return _attention(operation, relevance)
    if kind in _PASSED_ON:
        return [_fitted(relevance, o) for o, _ in operation.traced()[:1]] + [None] * (count - 1)
    if kind in (Kind.ADD, Kind.SUB):
        return _addition(operation, relevance)
    if kind in (Kind.MUL, Kind.DIV):
        return _product(operation, relevance)
    if kind is Kind.EMBEDDING:
        ids = next(o for o, _ in operation.traced())
        return [relevance.flatten(len(ids.size)).sum(-1)]
    if count == 1 and kind is Kind.CONV and _is_first_convolution(operation):
        return [_z_box(operation, relevance)]
    if count == 1 and kind is Kind.LINEAR and operation.name == "linear":
        return [_linear(operation, relevance)]
    if count == 1 and kind in (Kind.LINEAR, Kind.CONV, Kind.MATMUL):
        return [_alpha_beta(operation, relevance)]
    return _z_rule(operation, incoming)


def _fitted(relevance: Tensor, operand: Operand) -> Tensor:
    """Sums over what was broadcast."""
    if relevance.shape == operand.size:
        return relevance
    return relevance.sum_to_size(operand.size)


def _z_rule(operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
    """``R_x = x * J^T (R / f(x))``; an operation on several signals shares R evenly among them."""
    points = [in_full(operand) for operand, _ in operation.traced()]
    with torch.no_grad():
        outputs = operation.replay(points)
    quotients = [
        None if relevance is None else ratio(relevance, output)
        for relevance, output in zip(incoming, outputs, strict=False)
    ]
    shares = transposed(operation, points, quotients)
    return [
        None if share is None else point * share / len(points)
        for point, share in zip(points, shares, strict=True)
    ]


def positive_part(product: Tensor, absolute: Tensor, terms: int) -> Tensor:
    """``sum of max(x w, 0)`` from ``sum of x w`` and ``sum of |x w|``; rounding noise counts as 0."""
    noise = 4 * torch.finfo(product.dtype).eps * max(terms, 1) ** 0.5
    positive = (product + absolute) / 2
    return torch.where(positive <= noise * absolute, torch.zeros_like(positive), positive)


def _linear(operation: Operation, relevance: Tensor) -> Tensor:
    """The alpha-beta rule on ``F.linear``; the bias takes nothing."""
    signal, weight, *rest = operation.operands
    x, w = in_full(signal), in_full(weight)
    bias = in_full(rest[0]) if rest else None
    if operation.result is not None and operation.result.dtype == x.dtype:
        product = operation.result.tensor if bias is None else operation.result.tensor - bias
    else:
        product = F.linear(x, w)
    magnitude, weights = x.abs(), w.abs()
    positive = positive_part(product, F.linear(magnitude, weights), w.shape[-1])
    quotient = ratio(relevance, positive)
    return (x * (quotient @ w) + magnitude * (quotient @ weights)) / 2


def _alpha_beta(operation: Operation, relevance: Tensor) -> Tensor:
    """The alpha-beta rule on any product of a signal with weights."""
    ((signal, _),) = operation.traced()
    x = in_full(signal)
    plain, absolute = _without_bias(operation, torch.Tensor.clone), _without_bias(operation, torch.abs)
    with torch.no_grad():
        product, magnitude = plain.replay([x])[0], absolute.replay([x.abs()])[0]
    positive = positive_part(product, magnitude, signal.size[-1])
    quotient = ratio(relevance, positive)
    (share,) = transposed(plain, [x], [quotient])
    (share_of_magnitude,) = transposed(absolute, [x.abs()], [quotient])
    if share is None or share_of_magnitude is None:
        raise unsupported(operation, "the signal has no derivative")
    return (x * share + x.abs() * share_of_magnitude) / 2


def _without_bias(operation: Operation, change: "type[Tensor.clone]") -> Operation:
    """The operation with its weights changed and its bias left out."""
    bias = _bias_operand(operation)

    def changed(argument: object) -> object:
        if isinstance(argument, Operand) and argument.value is None:
            tensor = in_full(argument)
            value = torch.zeros_like(tensor) if argument is bias else change(tensor)
            return Operand(value, None, keep=True)
        if isinstance(argument, (list, tuple)):
            return type(argument)(changed(a) for a in argument)
        return argument

    return Operation(
        operation.index,
        operation.name,
        operation.kind,
        operation.call,
        tuple(changed(a) for a in operation.args),
        {key: changed(a) for key, a in operation.kwargs.items()},
        operation.operands,
        operation.outputs,
    )


def _bias_operand(operation: Operation) -> Operand | None:
    if operation.name in ("addmm", "baddbmm"):
        bias = operation.args[0] if operation.args else operation.kwargs["input"]
    elif operation.kind in (Kind.CONV, Kind.LINEAR):
        bias = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("bias")
    else:
        bias = None
    return bias if isinstance(bias, Operand) else None


def _is_first_convolution(operation: Operation) -> bool:
    ((_, value),) = operation.traced()
    return value.origin.operation is None


def _z_box(operation: Operation, relevance: Tensor) -> Tensor:
    """The z-B rule for pixels, with each sample's own minimum and maximum as the box."""
    ((signal, _),) = operation.traced()
    x = in_full(signal)
    dims = tuple(range(1, x.ndim))
    low = x.amin(dims, keepdim=True).expand_as(x)
    high = x.amax(dims, keepdim=True).expand_as(x)
    parts = [
        (x, _without_bias(operation, torch.Tensor.clone), 1),
        (low, _without_bias(operation, lambda w: w.clamp(min=0)), -1),
        (high, _without_bias(operation, lambda w: w.clamp(max=0)), -1),
    ]
    with torch.no_grad():
        total = sum(sign * part.replay([point])[0] for point, part, sign in parts)
    quotient = ratio(relevance, torch.as_tensor(total))
    result = torch.zeros_like(x)
    for point, part, sign in parts:
        (share,) = transposed(part, [point], [quotient])
        if share is not None:
            result = result + sign * point * share
    return result


def _addition(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """Eq. 9-10: the z-rule, then each operand's share is rescaled sample by sample.

    The share of an operand that no input reaches is dropped.
    """
    signal = signal_of(operation)
    if signal is not None:
        return [
            _fitted(relevance, o) if is_signal else None
            for (o, _), is_signal in zip(operation.traced(), signal, strict=True)
        ]
    if len(operation.operands) == 1 or any(o.size.numel() == 1 for o in operation.operands):
        return [_fitted(relevance, o) for o, _ in operation.traced()]
    left, right = (in_full(o) for o in operation.operands)
    factor = operation.kwargs.get("alpha", 1)
    if operation.name == "rsub":
        left, right = -factor * left, right
    else:
        right = right * (-factor if operation.kind is Kind.SUB else factor)
    quotient = ratio(relevance, left + right)
    shares = [left * quotient, right * quotient]
    # Masks are minus infinity where the relevance is zero.
    shares = [torch.where(quotient == 0, torch.zeros_like(share), share) for share in shares]
    samples = _samples(operation)
    totals = [samples.total(share) for share in shares]
    goal = samples.total(relevance)
    magnitude = totals[0].abs() + totals[1].abs()
    results: list[Tensor | None] = []
    for operand, share, total in zip(operation.operands, shares, totals, strict=True):
        if operand.value is None:
            continue
        scale = ratio(ratio(total.abs(), magnitude) * goal, total)
        results.append(_fitted(share * samples.spread(scale, share.shape), operand))
    return results


def _samples(operation: Operation) -> Axis:
    output = operation.outputs[0]
    if output is None or output.samples is None:
        raise UnsupportedOperationError(
            f"Can't tell which entries belong to which sample in an addition of shape "
            f"{None if output is None else tuple(output.shape)}. Explain the samples one by one."
        )
    return output.samples


def _product(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """A constant factor passes the relevance on; two signals get half each."""
    signal = signal_of(operation)
    traced = operation.traced()
    if len(traced) == 1:
        return [_fitted(relevance, traced[0][0])]
    if signal is None:
        return [_fitted(relevance / 2, operand) for operand, _ in traced]
    return [_fitted(relevance, o) if s else None for (o, _), s in zip(traced, signal, strict=True)]


def attention_relevance(
    call: FusedAttention | ExplicitAttention, relevance: Tensor, rows: slice
) -> Tensor:
    """The relevance of a block of attention probabilities: ``A * (s V^T) / 2``, ``s = R / out``."""
    quotient = output_quotient(call, relevance)[..., rows, :]
    return call.probabilities(rows) * (quotient @ call.values().transpose(-1, -2)) / 2


def output_quotient(call: FusedAttention | ExplicitAttention, relevance: Tensor) -> Tensor:
    """``R / out`` of an attention call, as ``(..., Q, D)``."""
    result = call.operation.result
    if result is None:
        raise RuntimeError("the output of an attention call is always kept")
    return ratio(call.outputs(relevance), call.outputs(in_full(result)))


def _attention(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    call = operation.attention
    values = call.values()
    quotient = output_quotient(call, relevance)
    to_values = torch.zeros_like(values)
    shares: dict[int, Tensor] = {}
    if isinstance(call, ExplicitAttention):
        whole = slice(None)
        weights = call.probabilities(whole)
        to_values = values * (weights.transpose(-1, -2) @ quotient) / 2
        to_weights = weights * (quotient @ values.transpose(-1, -2)) / 2
        shares[id(call.weights)] = call.to_weights(to_weights)
    else:
        to_values, shares = _through_fused(call, values, quotient)
    shares[id(call.value)] = call.to_values(to_values)
    return [shares.get(id(operand)) for operand, _ in operation.traced()]


def _through_fused(
    call: FusedAttention, values: Tensor, quotient: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """Through probabilities, softmax, mask and scores of a fused call, a block at a time."""
    keys, samples = call.keys(), call.output.samples
    to_values, to_keys = torch.zeros_like(values), torch.zeros_like(keys)
    to_queries = []
    totals = [torch.zeros(()), torch.zeros(()), torch.zeros(())]
    for rows in call.blocks():
        weights = call.probabilities(rows)
        block = quotient[..., rows, :]
        to_values = to_values + values * (weights.transpose(-1, -2) @ block) / 2
        relevance = weights * (block @ values.transpose(-1, -2)) / 2
        queries = call.queries(rows)
        products = queries @ keys.transpose(-1, -2)
        bias = call.bias(rows)
        if bias is not None and call.mask is not None and call.mask.dtype != torch.bool:
            scores = products * call.scale
            shares = ratio(relevance, scores + bias)
            onto_bias = torch.where(shares == 0, torch.zeros_like(shares), bias * shares)
            scored = scores * shares
            if samples is None:
                raise unsupported(call.operation, "the samples of the batch can't be told apart")
            axis = Axis(samples.outer, samples.size, scored.numel() // samples.size // samples.outer)
            totals = [
                total.to(part) + axis.total(part)
                for total, part in zip(totals, (scored, onto_bias, relevance), strict=True)
            ]
            relevance = scored
        shares = ratio(relevance, products)
        to_queries.append(queries * (shares @ keys) / 2)
        to_keys = to_keys + keys * (shares.transpose(-1, -2) @ queries) / 2
    onto_queries = torch.cat(to_queries, -2)
    if totals[0].ndim and samples is not None:
        scored, onto_bias, goal = totals
        scale = ratio(ratio(scored.abs(), scored.abs() + onto_bias.abs()) * goal, scored)
        onto_queries = onto_queries * _per_sample(scale, onto_queries, samples)
        to_keys = to_keys * _per_sample(scale, to_keys, samples)
    return to_values, {
        id(call.query): onto_queries.sum_to_size(call.query.size),
        id(call.key): call.ungroup(to_keys, call.key),
    }


def _per_sample(scale: Tensor, tensor: Tensor, samples: Axis) -> Tensor:
    inner = tensor.numel() // samples.size // samples.outer
    return Axis(samples.outer, samples.size, inner).spread(scale, tensor.shape)
