"""Attention calls of a forward pass, with one interface for all ways to write attention.

All tensors are in the layout ``(..., tokens, features)``: probabilities ``(..., Q, K)``, values
``(..., K, D)``, outputs ``(..., Q, D)``, where ``...`` holds samples and heads. Probabilities are
computed in blocks of query rows, so that the full ``(Q, K)`` map is never held in memory.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.trace.axis import Axis
from captum_transformer.trace.blocks import row_blocks
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype, in_full
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.scoring import Scoring
from captum_transformer.trace.value import Value

if TYPE_CHECKING:
    from captum_transformer.trace.recognise import Pattern

# How to permute a tensor; None stands for a missing dimension, which is inserted with size one.
# Dimensions of size one that are broadcast to the other factor's may be left out.
Order = tuple[int | None, ...] | None


def mixes_experts(operation: Operation) -> bool:
    """Whether an operation applies a router's weights to what experts made of the same token."""
    return operation.pattern is not None and operation.pattern.in_tokens


class AttentionCall(ABC):
    """An attention call, with everything that is needed to explain it.

    Attributes:
        layer: the index of the call among the attention calls of the forward pass; -1 for attention
            among channels.
        operation: the operation on the tape.
        value: the operand that holds the values.
    """

    def __init__(self, layer: int, operation: Operation, value: Operand) -> None:
        self.layer, self.operation, self.value = layer, operation, value

    @property
    def module(self) -> str:
        """The dotted name of the innermost module that made the call, or the module's class."""
        return self.operation.module

    @property
    def output(self) -> Value:
        """The traced output of the call."""
        output = self.operation.outputs[0]
        if output is None:
            raise RuntimeError("an attention call is only recorded if the inputs reach its output")
        return output

    def values(self) -> Tensor:
        """Returns the values, one for each head of the probabilities: ``(..., K, D)``."""
        return self.as_values(in_full(self.value))

    @property
    def among_channels(self) -> bool:
        """Whether the call attends to features instead of tokens, as in XCiT and among experts."""
        value = self.value.value
        if value is None:
            return False
        if mixes_experts(self.operation):
            return True
        pattern = self.operation.pattern
        order = None if pattern is None else pattern.value_order
        keys = -2 % len(value.shape) if order is None else order[-2]
        return keys is not None and Axis.of(value.shape, keys) in (value.features or ())

    @property
    def edge(self) -> GradientEdge:
        """The position of the output in the autograd graph."""
        edge = self.operation.edge
        if edge is None:
            raise RuntimeError("the edge of an attention call is always kept")
        return edge

    @abstractmethod
    def as_values(self, tensor: Tensor) -> Tensor:
        """Converts a tensor of the value operand's layout to ``(..., K, D)``, one per head."""

    @abstractmethod
    def values_width(self) -> int:
        """Returns the number of features of a value."""

    @abstractmethod
    def map_shape(self) -> tuple[int, ...]:
        """Returns the shape of the probabilities: ``(..., Q, K)``."""

    @abstractmethod
    def probabilities(self, rows: slice) -> Tensor:
        """Returns the attention probabilities of a block of queries: ``(..., rows, K)``."""

    def outputs(self, tensor: Tensor) -> Tensor:
        """Converts a tensor of the output's layout to ``(..., Q, D)``."""
        return tensor

    @abstractmethod
    def to_values(self, tensor: Tensor) -> Tensor:
        """Converts a tensor ``(..., K, D)``, one per head, to the shape of the value operand."""

    def blocks(self) -> Iterator[slice]:
        """Yields blocks of query rows that fit the memory reserved for probabilities."""
        return row_blocks(self.map_shape(), self.value.device)


class FusedAttention(AttentionCall):
    """A call of ``F.scaled_dot_product_attention``, whose probabilities are computed on demand."""

    def __init__(self, layer: int, operation: Operation) -> None:
        arguments = operation.arguments
        super().__init__(layer, operation, arguments["value"])
        self.query: Operand = arguments["query"]
        self.key: Operand = arguments["key"]
        self.mask: Operand | None = arguments.get("attn_mask")
        self.is_causal = bool(arguments.get("is_causal", False))
        scale = arguments.get("scale")
        self.scale: float = self.query.size[-1] ** -0.5 if scale is None else float(scale)

    def _heads(self, tensor: Tensor) -> Tensor:
        """Repeats the heads of grouped keys or values, so that each query head has its own."""
        lead = self.query.size[:-2]
        if tensor.ndim >= 3 and lead and 1 < tensor.shape[-3] < lead[-1]:
            tensor = tensor.repeat_interleave(lead[-1] // tensor.shape[-3], dim=-3)
        return tensor

    def queries(self, rows: slice) -> Tensor:
        """Returns a block of queries: ``(..., rows, D)``."""
        return in_full(self.query)[..., rows, :]

    def keys(self) -> Tensor:
        """Returns the keys, one for each query head: ``(..., K, D)``."""
        return self._heads(in_full(self.key))

    def as_values(self, tensor: Tensor) -> Tensor:
        return self._heads(tensor)

    def values_width(self) -> int:
        return self.value.size[-1]

    def map_shape(self) -> tuple[int, ...]:
        lead = self.output.shape[:-2]
        return (*lead, self.query.size[-2], self.key.size[-2])

    def bias(self, rows: slice) -> Tensor | None:
        """Returns what is added to the scores, broadcastable to them; masked entries are -inf."""
        if self.is_causal:
            queries, keys = self.query.size[-2], self.key.size[-2]
            row = torch.arange(queries, device=self.query.device)[rows]
            allowed = torch.arange(keys, device=self.query.device) <= row[:, None]
        elif self.mask is not None:
            allowed = self.mask.tensor
            if allowed.ndim > 1 and allowed.shape[-2] > 1:
                allowed = allowed[..., rows, :]
            if allowed.dtype != torch.bool:
                return allowed
        else:
            return None
        dtype = accumulation_dtype(self.query.dtype)
        zero = torch.zeros((), dtype=dtype, device=allowed.device)
        return torch.where(allowed, zero, -math.inf)

    def probabilities(self, rows: slice) -> Tensor:
        products = self.queries(rows) @ self.keys().transpose(-1, -2)
        return self.softmax(*self.scores(products, rows))

    @property
    def adds(self) -> bool:
        """Whether anything other than a mask is added to the scores."""
        return self.mask is not None and self.mask.dtype != torch.bool

    def scores(self, products: Tensor, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Returns the scores made of products of queries and keys, and the bias added to them."""
        return products * self.scale, self.bias(rows)

    @staticmethod
    def softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the probabilities for some scores and the bias that is added to them."""
        if bias is not None:
            # A query whose keys are all masked gets zeros, as in the fused kernels.
            return torch.softmax(scores + bias, -1).nan_to_num(0.0)
        return torch.softmax(scores, -1)

    def to_values(self, tensor: Tensor) -> Tensor:
        return self.ungroup(tensor, self.value)

    def ungroup(self, tensor: Tensor, operand: Operand) -> Tensor:
        """Sums over query heads, and broadcast samples, that share one head of the operand."""
        size = operand.size
        if tensor.ndim >= 3 and len(size) >= 3 and size[-3] not in (1, tensor.shape[-3]):
            tensor = tensor.reshape(*tensor.shape[:-3], size[-3], -1, *tensor.shape[-2:]).sum(-3)
        return tensor.sum_to_size(size)


class FlexAttention(FusedAttention):
    """A call of `flex_attention`, where the model's own functions modify and mask the scores.

    The result of these functions for a score of zero is treated as a bias that is added to the
    scores, such as a position bias.
    """

    def __init__(self, layer: int, operation: Operation) -> None:
        super().__init__(layer, operation)
        self.scoring: Scoring = operation.arguments["scoring"]

    @property
    def adds(self) -> bool:
        return True

    def scores(self, products: Tensor, rows: slice) -> tuple[Tensor, Tensor | None]:
        scores = products * self.scale
        bias = self.scoring(torch.zeros_like(scores), rows)
        changed = self.scoring(scores, rows) - bias
        return torch.where(bias.isfinite(), changed, scores), bias


class ExplicitAttention(AttentionCall):
    """A softmax followed by a product, where the model computes the probabilities itself."""

    def __init__(self, layer: int, operation: Operation, pattern: "Pattern") -> None:
        self.weights = operation.operands[pattern.weights]
        self._pattern = pattern
        super().__init__(layer, operation, operation.operands[1 - pattern.weights])

    @staticmethod
    def _ordered(tensor: Tensor, order: Order) -> Tensor:
        if order is None:
            return tensor
        kept = [dim for dim in order if dim is not None]
        left = _left_out(kept, tensor.dim())
        tensor = tensor.permute(*left, *kept)[(0,) * len(left)]
        for place, dim in enumerate(order):
            if dim is None:
                tensor = tensor.unsqueeze(place)
        return tensor

    @staticmethod
    def _restored(tensor: Tensor, order: Order, ndim: int) -> Tensor:
        if order is None:
            return tensor
        # Sum over the heads that share their values; an order leaves out the first of these.
        first = tensor.dim() - len(order)
        shared = [first + place for place, dim in enumerate(order) if dim is None]
        if first or shared:
            tensor = tensor.sum([*range(first), *shared])
        dims = [dim for dim in order if dim is not None]
        tensor = tensor.permute([dims.index(dim) for dim in sorted(dims)])
        for dim in _left_out(dims, ndim):
            tensor = tensor.unsqueeze(dim)
        return tensor

    def as_values(self, tensor: Tensor) -> Tensor:
        return self._ordered(tensor, self._pattern.value_order)

    def values_width(self) -> int:
        width = -1 if self._pattern.value_order is None else self._pattern.value_order[-1]
        return 1 if width is None else self.value.size[width]

    def map_shape(self) -> tuple[int, ...]:
        return tuple(self._ordered(self.weights.tensor, self._pattern.weights_order).shape)

    def probabilities(self, rows: slice) -> Tensor:
        return self._ordered(in_full(self.weights), self._pattern.weights_order)[..., rows, :]

    def outputs(self, tensor: Tensor) -> Tensor:
        return self._ordered(tensor, self._pattern.output_order)

    def to_values(self, tensor: Tensor) -> Tensor:
        size = self.value.size
        return self._restored(tensor, self._pattern.value_order, len(size)).sum_to_size(size)

    def to_weights(self, tensor: Tensor) -> Tensor:
        """Converts a tensor ``(..., Q, K)`` to the layout of the operand of probabilities."""
        size = self.weights.size
        return self._restored(tensor, self._pattern.weights_order, len(size)).sum_to_size(size)


def _left_out(kept: Sequence[int], ndim: int) -> list[int]:
    """Returns the dimensions that an order leaves out, all of size one."""
    return [dim for dim in range(ndim) if dim not in kept]


def attention_call(layer: int, operation: Operation, pattern: "Pattern") -> AttentionCall:
    """Returns the attention call for an operation that was recognized as attention."""
    if operation.kind is not Kind.ATTENTION:
        return ExplicitAttention(layer, operation, pattern)
    return fused_attention(operation, layer)


def fused_attention(operation: Operation, layer: int = -1) -> FusedAttention:
    """Returns the attention call for an operation of kind ATTENTION, recorded or not."""
    flexible = "scoring" in operation.arguments
    return FlexAttention(layer, operation) if flexible else FusedAttention(layer, operation)
