"""The scores that a model's own head returns for the tokens of its earlier layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.calling.precision import widest_float
from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.propagate import propagate, transposed
from captum_transformer.rules.rearranged import rearranged
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.features import feature_dims
from captum_transformer.trace.history import leading_to
from captum_transformer.trace.kinds import MOVES
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

# Attention calls that don't depend on each other.
Layer = Sequence[AttentionCall]


class Reading(NamedTuple):
    """A run of the head on the tokens of a layer.

    Attributes:
        tokens: the tokens of the layer.
        found: the tensors that the head computes, by their values in the forward pass.
        score: the score that the head returns, ``(samples,)``.
    """

    tokens: Tensor
    found: Mapping[Value, Tensor]
    score: Tensor

    def slope(self, at: Tensor) -> Tensor:
        """Returns the gradient of the score at the tokens, or at one of the head's tensors."""
        slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
            self.score.sum(), at, retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(at) if slopes[0] is None else slopes[0]


class LayerScores:
    """The scores that the head, all operations after the last layer, returns for layers' tokens.

    The tokens of a layer are the last value before the next layer's attention that everything
    added by the layer's attention passes through. In the last layer, they are the result of the
    same operations as in the layer before.

    Args:
        tape: the forward pass, with all operands kept.
        score: the score.
        layers: the layers of one tower.

    Attributes:
        layers: the layers without the pooler.
        pooler: the attention by which learned queries read the tokens of the last layer, if the
            head begins with one.

    Raises:
        UnsupportedOperationError: if there is no head that reads only the tokens of the last layer,
            or if it can't read the tokens of the other layers.
    """

    def __init__(self, tape: Tape, score: Value, layers: Sequence[Layer]) -> None:
        self._tape, self._operations, self._score = tape, leading_to([score]), score
        self._last_use = {v: o.index for o in self._operations for _, v in o.traced()}
        self.pooler = _pooler(layers)
        self.layers = layers if self.pooler is None else layers[:-1]
        self._tokens = [
            self._tokens_between(layer, further)
            for layer, further in zip(self.layers[:-1], self.layers[1:], strict=True)
        ]
        self._head: list[Operation] = []
        if self._tokens:
            self._tokens.append(self._last_tokens())
            self._head = list(self._behind(self._tokens[-1:]))
            self._require_head()

    def reading(self, layer: int) -> Reading:
        """Runs the head on the tokens of a layer."""
        read = self._tokens[layer]
        data = next(
            operand.tensor
            for operation in self._operations
            for operand, value in operation.traced()
            if value is read and operand.is_kept
        )
        with torch.enable_grad():
            tokens = data.detach().requires_grad_()
            found = {self._tokens[-1]: tokens}
            for operation in self._head:
                given = [_given(operand, found.get(value)) for operand, value in operation.traced()]
                made = zip(operation.outputs, operation.replay(given), strict=False)
                found |= {value: tensor for value, tensor in made if value is not None}
        return Reading(tokens, found, found[self._score])

    def back_to(self, layer: int, slope: Tensor) -> dict[AttentionCall, Tensor]:
        """Returns the slopes at the outputs of a layer's attention, given those at its tokens."""

        def gradient(operation: Operation, slopes: list[Tensor | None]) -> list[Tensor | None]:
            if operation.kind in MOVES:
                return rearranged(operation, slopes)
            return transposed(operation, [_given(o) for o, _ in operation.traced()], slopes)

        calls = self.layers[layer]
        outputs = [call.output for call in calls]
        reached = propagate(self._tape, {self._tokens[layer]: slope}, gradient, outputs)
        return {call: call.outputs(reached[call.output]) for call in calls}

    def _behind(self, values: Sequence[Value]) -> Iterator[Operation]:
        """Yields the operations whose operands depend on some values, in order."""
        for operation in self._operations:
            if any(_is_of(value, values) for _, value in operation.traced()):
                yield operation

    def _narrow(self, layer: Layer) -> Iterator[Value]:
        """Yields the values that everything added by a layer's attention passes through."""
        outputs = [call.output for call in layer]
        live = set(outputs)
        for operation in self._behind(outputs):
            live |= {value for value in operation.outputs if value in self._last_use}
            live = {value for value in live if self._last_use[value] > operation.index}
            if len(live) == 1:
                yield from live

    def _tokens_between(self, layer: Layer, further: Layer) -> Value:
        until = min(call.operation.index for call in further)
        found = [value for value in self._narrow(layer) if _step(value) < until]
        if not found:
            raise _unsupported(
                f"what attention call {layer[0].layer} ({layer[0].module}) adds does not all pass "
                "through one tensor before the next one attends, so no tensor holds its tokens"
            )
        return found[-1]

    def _last_tokens(self) -> Value:
        """Returns the last layer's tokens, made by the same operations as in the layer before."""
        before, last = self.layers[-2:]
        made, step = self._tokens[-1], _step(self._tokens[-1])
        steps = [o for o in self._behind([c.output for c in before]) if o.index <= step]
        found = list(self._behind([call.output for call in last]))[: len(steps)]
        if list(map(_kind, steps)) == list(map(_kind, found)):
            value = found[-1].outputs[steps[-1].outputs.index(made)]
            if value is not None and any(value is other for other in self._narrow(last)):
                return value
        raise _unsupported(
            f"its last layer ({last[0].module}) is not built as the one before "
            f"({before[0].module}), so where it ends and the head begins is not known"
        )

    def _require_head(self) -> None:
        last = self._tokens[-1]
        shapes = [tuple(value.shape) for value in self._tokens]
        if len(set(shapes)) > 1:
            raise _unsupported(
                f"the head reads tokens of the shape {shapes[-1]}, but layers have {shapes[:-1]}, "
                "as where tokens are merged or dropped"
            )
        first = [call.output for call in self.layers[0]]
        for operation in self._head:
            attends = operation.attention is not None and operation.attention is not self.pooler
            if attends:
                raise _unsupported(
                    f"behind the last layer there is more attention ({operation.described})"
                )
            others = [v for _, v in operation.traced() if not _is_of(v, [last])]
            if any(_is_of(value, first) for value in others):
                raise _unsupported(
                    f"the score is read from the tokens of several layers ({operation.described})"
                )
        self._require_places()

    def _require_places(self) -> None:
        """Checks along skip connections that all layers have the same tokens at the same places."""
        *others, last = self._tokens
        dims = feature_dims(last)
        layout = [1 if dim in dims else length for dim, length in enumerate(last.shape)]
        count = math.prod(layout)
        numbers = torch.arange(1.0, 1 + count, dtype=widest_float(last.device), device=last.device)
        rounding = 256 * torch.finfo(numbers.dtype).eps
        shares = numbers.reshape(layout).expand(last.shape)
        reached = TokenFlow(self._tape, {})({last: shares}, others)
        for value, layer in zip(others, self.layers, strict=False):
            # Shares may be spread over features on the way, and masks leave some tokens out.
            found, expected = reached[value].sum(dims), shares.sum(dims)
            kept = found != 0
            close = torch.isclose(found, expected * kept, rtol=rounding).all()
            if not truth(kept.any() & close, "whether tokens keep their places along skips"):
                raise _unsupported(
                    f"behind the layer of {layer[0].module!r} tokens don't keep their places "
                    f"along a skip connection, so the head would confuse them"
                )


def _pooler(layers: Sequence[Layer]) -> AttentionCall | None:
    """Returns the last call if its queries are learned and have read no tokens, or else None."""
    (*_, before), last = layers[:-1] or [()], layers[-1]
    if not before or len(last) > 1:
        return None
    query, read = query_value(last[0]), last[0].value.value
    earlier = [call.output for call in before]
    reads = read is not None and _is_of(read, earlier)
    return last[0] if reads and (query is None or not _is_of(query, earlier)) else None


def _given(operand: Operand, instead: Tensor | None = None) -> Tensor:
    """Returns the tensor that an operation runs on: the head's own, or else the operand's."""
    if instead is not None:
        return instead
    if not operand.is_kept:
        raise _unsupported("it reads what was written through a view, and that was not kept")
    return operand.tensor


def _is_of(value: Value, others: Sequence[Value]) -> bool:
    return any(value is other or value.descends_from(other) for other in others)


def _step(value: Value) -> float:
    return -math.inf if value.operation is None else value.operation.index


def _kind(operation: Operation) -> tuple[str, list[tuple[int, ...] | None]]:
    shapes = [None if value is None else tuple(value.shape) for value in operation.outputs]
    return operation.name, shapes


def _unsupported(why: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        "LeGrad lets the model's head read the tokens of each layer, which it can't do here: "
        f"{why}. GenericAttentionRelevance asks for no such head."
    )
