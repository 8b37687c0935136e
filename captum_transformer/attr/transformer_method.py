"""What all methods share: Captum's calling conventions around one traced forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from captum._utils.common import _format_output, _format_tensor_into_tuples, _is_tuple
from captum._utils.typing import TargetType
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from captum_transformer.rules import flow
from captum_transformer.trace.forward import TracedForward, traced_forward
from captum_transformer.trace.functions import Kind
from captum_transformer.trace.isolation import in_full_precision
from captum_transformer.trace.mode import ForwardRule
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.tape import Value
from captum_transformer.trace.tokens import per_token, token_value

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])

# Relevance and flow are linear, so they may start large; products with denormals are slow on CPUs.
START = 2.0**40


class TransformerMethod(GradientAttribution, ABC):
    """An attribution method for Transformers.

    The model runs once, unmodified, under a trace; the method then carries something backward
    along it. Nothing of the model, the inputs or the random state is changed.

    Args:
        forward_func: the model (an ``nn.Module``) or any callable that runs one, as in Captum.
    """

    # The kinds of operation whose operands the method's rules want to see.
    _keep: frozenset[Kind] = flow.KEEP

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Inputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
    ) -> Inputs:
        """Attributes the target's score to the inputs.

        Args:
            inputs: a tensor, or a tuple of tensors, samples first: pixels, embeddings, token ids.
            target: which output to explain, in any of Captum's forms: an ``int`` or a tuple of
                indices for all samples, a tensor ``(samples,)`` or a list with one for each
                sample; None if the model returns one score per sample.
            additional_forward_args: further arguments for the model, as in Captum; they get no
                attribution.

        Returns:
            As ``inputs``: a tensor, or a tuple of them, each of its input's shape. Token ids get
            floating point relevance ``(samples, tokens)``.

        Raises:
            NoAttentionError: if the forward pass has no attention that can be seen.
            InvalidTargetError: if the target does not fit the output.
            UnsupportedOperationError: if an operation has no rule in this method.
            UnseenOperationError: if the inputs act through something that can't be traced.
        """
        tuple_given = _is_tuple(inputs)
        with self._traced(inputs, additional_forward_args) as forward:
            maps = self._attribute_inputs(forward, target)
        result: Inputs = _format_output(tuple_given, maps)
        return result

    def attribute_tokens(
        self,
        inputs: Inputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
    ) -> Inputs:
        """Attributes the target's score to the tokens that the inputs are turned into.

        Learned tokens, such as a ViT's class token, are no input and are left out; a ``[CLS]``
        that is one of the input ids stays.

        Args:
            inputs: as in :meth:`attribute`.
            target: as in :meth:`attribute`.
            additional_forward_args: as in :meth:`attribute`.

        Returns:
            Token relevance ``(samples, tokens)`` for each input; the patches of an image in
            row-major order.

        Raises:
            UnsupportedOperationError: if an input is not turned into tokens.
        """
        tuple_given = _is_tuple(inputs)
        with self._traced(inputs, additional_forward_args) as forward:
            maps = self._attribute_tokens(forward, target)
        result: Inputs = _format_output(tuple_given, maps)
        return result

    def attribute_targets(
        self,
        inputs: Inputs,
        targets: Sequence[TargetType],
        additional_forward_args: Any = None,
    ) -> list[Inputs]:
        """Attributes several targets' scores; the model runs only once.

        Args:
            inputs: as in :meth:`attribute`.
            targets: a list; each entry is a target as in :meth:`attribute`.
            additional_forward_args: as in :meth:`attribute`.

        Returns:
            One result of :meth:`attribute` for each target.
        """
        tuple_given = _is_tuple(inputs)
        with self._traced(inputs, additional_forward_args) as forward:
            maps = [self._attribute_inputs(forward, target) for target in targets]
        return [_format_output(tuple_given, attributions) for attributions in maps]

    @contextmanager
    def _traced(self, inputs: Any, additional_forward_args: Any) -> Iterator[TracedForward]:
        with traced_forward(
            self.forward_func,
            _format_tensor_into_tuples(inputs),
            additional_forward_args,
            keep=self._keep,
            rule=self._forward_rule(inputs, additional_forward_args),
        ) as forward:
            yield forward

    def _forward_rule(
        self,
        inputs: Any,  # noqa: ARG002 - for methods that look at the model first
        additional_forward_args: Any,  # noqa: ARG002
    ) -> ForwardRule | None:
        """What the method changes about the gradient of operations."""
        return None

    def _attribute_inputs(self, forward: TracedForward, target: Any) -> tuple[Tensor, ...]:
        with in_full_precision(forward.inputs[0].device):
            relevance = self._relevance(forward, target, forward.values)
        return tuple(
            _like(relevance[value], tensor)
            for value, tensor in zip(forward.values, forward.inputs, strict=True)
        )

    def _attribute_tokens(self, forward: TracedForward, target: Any) -> tuple[Tensor, ...]:
        tokens = [token_value(value, forward.layers()) for value in forward.values]
        with in_full_precision(forward.inputs[0].device):
            relevance = self._relevance(forward, target, tokens)
        return tuple(
            _like(per_token(relevance[value], value), tensor)
            for value, tensor in zip(tokens, forward.inputs, strict=True)
        )

    @abstractmethod
    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        """The relevance of the target's score at some values of the forward pass."""


def seed(selected: Tensor, value: Value, *, start: float = 1.0) -> dict[Value, Tensor]:
    """One for each sample's chosen score, or a larger start value."""
    ones = torch.full_like(selected.detach(), start, dtype=accumulation_dtype(selected.dtype))
    return {value: ones}


def scaled_back(relevance: dict[Value, Tensor]) -> dict[Value, Tensor]:
    """Undoes the large start value of a linear pass; what is all but denormal becomes zero."""
    result = {}
    for value, tensor in relevance.items():
        scaled = tensor / START
        vanishing = scaled.abs() < torch.finfo(scaled.dtype).tiny * START
        result[value] = scaled.masked_fill(vanishing, 0.0)
    return result


def _like(relevance: Tensor, tensor: Tensor) -> Tensor:
    """Contiguous, detached and of the input's precision (its own for token ids)."""
    dtype = tensor.dtype if tensor.is_floating_point() else relevance.dtype
    return relevance.detach().to(dtype).contiguous()
