"""What the methods that hand relevance from token to token by attention maps share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer.attr.transformer_method import START, TransformerMethod, scaled_back, seed
from captum_transformer.rules.flow import MapBlock, TokenFlow, attend_with
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.tape import Value


class Question(NamedTuple):
    """What is to be explained.

    Attributes:
        forward: the traced forward pass.
        selected: the score of each sample: ``(samples,)``.
        value: the same on the tape.
        wanted: the values whose relevance is asked for.
    """

    forward: TracedForward
    selected: Tensor
    value: Value
    wanted: Sequence[Value]


class AttentionFlowMethod(TransformerMethod):
    """A method whose relevance is the target's token flow through some map of each attention call.

    The flow goes on through the operation that made the tokens: a token's relevance is spread
    evenly over the input values that the token was made from, so that sums are kept.
    """

    # Methods whose maps are the same for all classes work without a target.
    _class_specific = True

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        forward.layers()
        selected, value = forward.select(target, mean_if_none=not self._class_specific)
        flow = self._flow(Question(forward, selected, value, wanted))
        return scaled_back(flow(seed(selected, value, start=START), wanted))

    @abstractmethod
    def _flow(self, question: Question) -> TokenFlow:
        """The token flow with the method's maps."""


def output_gradients(
    forward: TracedForward, selected: Tensor, calls: Sequence[AttentionCall]
) -> dict[AttentionCall, Tensor]:
    """The gradient of the selected scores at the calls' outputs, as ``(..., Q, D)``."""
    dtype = accumulation_dtype(selected.dtype)
    gradients = forward.gradients(selected, [call.edge for call in calls])
    return {
        call: call.outputs(
            torch.zeros(call.output.shape, dtype=dtype, device=selected.device)
            if gradient is None
            else gradient.to(dtype)
        )
        for call, gradient in zip(calls, gradients, strict=True)
    }


def gradient_map(gradients: dict[AttentionCall, Tensor]) -> MapBlock:
    """The gradient at the attention probabilities: ``dO V^T``."""

    def block(call: AttentionCall, rows: slice) -> Tensor:
        return gradients[call][..., rows, :] @ call.values().transpose(-1, -2)

    return block


def row_sums(maps: MapBlock, call: AttentionCall) -> Tensor:
    """The sum of each row of a call's map: ``(..., Q)``."""
    return torch.cat([maps(call, rows).sum(-1) for rows in call.blocks()], -1)


def rollout(
    forward: TracedForward, calls: Sequence[AttentionCall], maps: MapBlock, *, normalize_rows: bool
) -> TokenFlow:
    """The flow through ``(I + A_L) ... (I + A_1)``, its rows normalised if asked for."""
    attend = attend_with(maps)
    return TokenFlow(
        forward.tape,
        {call.layer: attend for call in calls},
        row_sums=(lambda call: row_sums(maps, call)) if normalize_rows else None,
    )


def single_layer(forward: TracedForward, call: AttentionCall, maps: MapBlock) -> TokenFlow:
    """The flow through one layer's map alone, without the skip beside it."""
    return TokenFlow(forward.tape, {call.layer: attend_with(maps)}, skip=False)


def from_layer(forward: TracedForward, start_layer: int) -> list[AttentionCall]:
    """The attention calls from a layer on."""
    return forward.layers()[forward.layer(start_layer, name="start_layer").layer :]
