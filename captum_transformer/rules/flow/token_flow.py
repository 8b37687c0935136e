"""The token flow: every token's share of the output, carried backward through the attention calls.

A share is spread evenly over a token's features. Token-wise operations keep it at its token,
rearrangements move it, attention hands it from queries to keys, and at a residual connection the
skip and the attention branch both get it whole: the row of the papers' ``(I + A_L) ... (I + A_1)``.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.flat import (
    constant_product,
    flat,
    inner_product,
    pooled,
    receptive_field,
    summed,
    summed_at_indices,
)
from captum_transformer.rules.flow.maps import Attend
from captum_transformer.rules.flow.residual import MEETINGS, Residuals
from captum_transformer.rules.propagate import propagate, rearranged, unsupported
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Kind
from captum_transformer.trace.layout import chooses_features, sums_over_features
from captum_transformer.trace.operation import Operation, Value
from captum_transformer.trace.recognise import CUT_PROBABILITIES, applies_cut_probabilities
from captum_transformer.trace.statistics import signal_of
from captum_transformer.trace.tape import Tape

KEEP = frozenset({Kind.POOL, Kind.MAXIMUM, Kind.CHOICE})


class TokenFlow:
    """Carries shares of the output back to its tokens and inputs.

    Args:
        tape: the traced forward pass.
        layers: what each attention call that contributes does; the others contribute nothing.
        skip: whether the skip beside a contributing call gets its share; without it only what
            passes through the call counts.
        row_sums: the sum of each row of the calls' maps, ``(..., Q)``, to divide by one plus their
            mean over heads at the residual connection (row-normalised rollout); None not to.
    """

    def __init__(
        self,
        tape: Tape,
        layers: Mapping[int, Attend],
        *,
        skip: bool = True,
        row_sums: Callable[[AttentionCall], Tensor] | None = None,
    ) -> None:
        self._tape = tape
        self._layers = layers
        self._skip = skip
        self._row_sums = row_sums
        self._active = sum(1 << layer for layer in layers)
        self._residuals = tape.derived(Residuals)

    def __call__(
        self, seeds: Mapping[Value, Tensor], wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        """What reaches the wanted values of what starts at the seeds."""
        return propagate(self._tape, seeds, self._rule, wanted)

    def require_way(self, start: Value, wanted: Sequence[Value]) -> None:
        """Makes sure that what starts at a value does not all end at calls that hand nothing on.

        Raises:
            UnsupportedOperationError: if it does, though the wanted values have a part in it.
        """
        ends = [
            operation.attention.value.value
            for operation in self._tape.operations
            if operation.attention is not None and operation.attention.layer in self._layers
        ]
        values = [value for value in (*ends, *([start] if self._skip else [])) if value is not None]
        pairs = [(value, earlier) for value in values for earlier in wanted]
        made = [value is earlier or value.descends_from(earlier) for value, earlier in pairs]
        if any(made) and not any(self._residuals.is_still(*pair) for pair in pairs):
            raise UnsupportedOperationError(
                "The tokens of the chosen attention layers were made of the inputs by earlier "
                "attention without a skip beside it (as where LeViT merges tokens), so their "
                "relevance leads back to no input. Choose an earlier `layer` or `start_layer`, or "
                "a method that multiplies all layers, such as AttentionRollout."
            )

    def _rule(self, operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
        kind, traced = operation.kind, operation.traced()
        if kind in MOVES:
            return rearranged(operation, incoming)
        if kind in (Kind.POOL, Kind.MAXIMUM) or (
            kind is Kind.CHOICE and not chooses_features(operation)
        ):
            return pooled(operation, incoming)
        share = incoming[0]
        if share is None:
            raise unsupported(operation, "only a side output is used")
        if operation.attention is not None:
            return self._attention(operation.attention, share)
        if kind in MEETINGS:
            return self._combination(operation, share)
        if kind is Kind.CONTRAST:
            # Which tokens the scores are read from: a share has no sign that could cancel.
            return [share / len(traced)] * len(traced)
        if kind in (Kind.SUM, Kind.MEAN):
            return [summed(operation, share)]
        if operation.kind is Kind.SUM_AT_INDICES:
            return summed_at_indices(operation, share)
        if kind is Kind.EMBEDDING:
            return [share.flatten(len(traced[0][0].size)).sum(-1)]
        if len(traced) == 1:
            return [self._token_wise(operation, share)]
        if sums_over_features(operation):
            return self._inner_product(operation, share)
        if applies_cut_probabilities(operation):
            raise unsupported(operation, f"it {CUT_PROBABILITIES}")
        raise unsupported(
            operation,
            "it mixes several signals, and which of their tokens it ties is not known "
            "(attention must be a softmax over keys applied to values)",
        )

    def _inner_product(self, operation: Operation, share: Tensor) -> list[Tensor | None]:
        """How similar two signals are, such as an image and a text, each from its own tower."""
        parts = inner_product(operation, share)
        return [
            part * whole if whole else None
            for part, whole in zip(parts, self._residuals[operation].due, strict=True)
        ]

    def _token_wise(self, operation: Operation, share: Tensor) -> Tensor:
        ((operand, value),) = operation.traced()
        if operation.kind in BY_ENTRY:
            return share.sum_to_size(value.shape)
        if chooses_features(operation):
            return flat(share, value)
        if operation.kind in CONVOLUTIONS:
            return receptive_field(operation, operand, value, share)
        if operation.kind is Kind.PRODUCT:
            return constant_product(operation, value, share)
        raise unsupported(operation, "whether it keeps tokens apart is not known")

    def _attention(self, call: AttentionCall, share: Tensor) -> list[Tensor | None]:
        traced = call.operation.traced()
        if call.among_channels:
            # Its weights, held constant, mix features of one token: a linear map like any other.
            width = call.map_shape()[-1]
            per_place = call.outputs(share).sum(-2, keepdim=True) / width
            mixed = per_place.expand(*per_place.shape[:-2], width, per_place.shape[-1])
            received = call.to_values(mixed)
            return [received if operand is call.value else None for operand, _ in traced]
        attend = self._layers.get(call.layer)
        if attend is None:
            return [None] * len(traced)
        queries = call.outputs(share).sum(-1)
        keys = attend(call, queries).unsqueeze(-1)
        width = call.values_width()
        received = call.to_values((keys / width).expand(*keys.shape[:-1], width))
        return [received if operand is call.value else None for operand, _ in traced]

    def _combination(self, operation: Operation, share: Tensor) -> list[Tensor | None]:
        """A sum or an element-wise product: who of its operands gets the share."""
        traced = operation.traced()
        shares: list[Tensor | None]
        if len(traced) == 1:
            shares = [self._beside_constant(operation, share)]
        elif len({value.keys is None for _, value in traced}) > 1 and operation.kind is Kind.MUL:
            raise unsupported(
                operation,
                "softmax weights multiply a signal outside a matrix product, so what they attend "
                "to is not known. Write the weighted sum as a matrix product",
            )
        elif (signal := signal_of(operation)) is not None:
            shares = [share if is_signal else None for is_signal in signal]
        else:
            shares = self._divided(operation, share)
            self._refuse_mixtures(operation, shares)
        return [
            None if s is None else s.sum_to_size(operand.size)
            for (operand, _), s in zip(traced, shares, strict=True)
        ]

    def _beside_constant(self, operation: Operation, share: Tensor) -> Tensor:
        ((_, value),) = operation.traced()
        layers = value.attention & self._active
        if self._row_sums is None or not layers or not self._residuals.is_beside_learned(operation):
            return share
        return share / (1 + self._row_sums_at(value, layers, share))

    def _divided(self, operation: Operation, share: Tensor) -> list[Tensor | None]:
        values = [value for _, value in operation.traced()]
        meeting = self._residuals[operation]
        attending = [
            this.attention & ~other.attention & self._active
            for this, other in zip(values, reversed(values), strict=True)
        ]
        if self._row_sums is not None and self._residuals.is_complete(operation, attending):
            total = torch.ones_like(share)
            for branch, layers, other in zip(values, attending, reversed(meeting.due), strict=True):
                if layers and other:
                    total = total + self._row_sums_at(branch, layers, share)
            share = share / total
        due = list(meeting.due)
        if not self._skip:
            due = [
                0.0 if other and not own else part
                for part, own, other in zip(due, attending, reversed(attending), strict=True)
            ]
        shares = [share * part if part else None for part in due]
        if meeting.skip is not None and shares[meeting.skip] is not None:
            skip, branch = values[meeting.skip], values[1 - meeting.skip]
            # A branch may be broadcast, as a gate for each token is.
            passed_on = self._passed_on(branch, skip, share.sum_to_size(branch.shape))
            shares[meeting.skip] = share.sum_to_size(skip.shape) - passed_on
        return shares

    def _passed_on(self, branch: Value, skip: Value, share: Tensor) -> Tensor:
        """What a branch hands on to the tokens of the skip beside it other than by attention."""
        source = skip.origin
        arrived = TokenFlow(self._tape, {})({branch: share}, [source])[source]
        steps: list[Operation] = []
        while skip is not source and skip.operation is not None:
            steps.append(skip.operation)
            ((_, skip),) = skip.operation.traced()
        with torch.no_grad():
            for step in reversed(steps):
                (arrived,) = step.replay([arrived])
        return arrived

    def _refuse_mixtures(self, operation: Operation, shares: list[Tensor | None]) -> None:
        """A branch beside a skip must not tie tokens in a way that goes unnoticed."""
        values = [value for _, value in operation.traced()]
        for value, other, share in zip(values, reversed(values), shares, strict=True):
            if share is None and (unread := value.mixtures & ~other.mixtures):
                culprit = self._tape.operations[unread.bit_length() - 1]
                if applies_cut_probabilities(culprit):
                    raise unsupported(culprit, f"it {CUT_PROBABILITIES}")
                raise unsupported(
                    culprit,
                    "it ties tokens, but is no attention that can be read (a softmax over keys "
                    "applied to values): what its branch adds would be lost",
                )

    def _row_sums_at(self, branch: Value, layers: int, like: Tensor) -> Tensor:
        """The calls' row sums, carried forward to where their branch meets the skip.

        Forward is the adjoint of backward: the derivative of what a share at the branch makes of
        the row sums at the calls.
        """
        if self._row_sums is None:
            raise RuntimeError("row sums are only asked for when rows are normalised")
        calls = {
            call.output: call
            for call in (operation.attention for operation in self._tape.operations)
            if call is not None and not call.among_channels and layers >> call.layer & 1
        }
        probe = torch.zeros(branch.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            reached = TokenFlow(self._tape, {})({branch: probe}, list(calls))
            total = torch.zeros((), dtype=like.dtype, device=like.device)
            for output, call in calls.items():
                sums = self._row_sums(call).detach()
                total = total + (call.outputs(reached[output]).sum(-1) * sums).sum()
        (sums,) = torch.autograd.grad(total, probe)
        return sums

    def comes_from_input(self, value: Value, wanted: Sequence[Value], like: Tensor) -> Tensor:
        """For each entry of a value, what part of a share there the inputs get by skips alone.

        One for a token that was made from an input, zero for a learned one.
        """
        probe = torch.zeros(value.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            reached = TokenFlow(self._tape, {})({value: probe}, wanted)
            total = torch.stack([tensor.sum() for tensor in reached.values()]).sum()
        if not total.requires_grad:
            return torch.zeros_like(probe)
        (part,) = torch.autograd.grad(total, probe)
        return part

    def gathered(self, tokens: Value, source: Value, relevance: Tensor) -> Tensor:
        """Sums relevance of an input over what each token was made from: the flow's adjoint.

        An input value that several tokens were made from is split evenly among them. The result
        has the shape of the tokens' value; its sum is that of the relevance.
        """
        probe = torch.ones(
            tokens.shape, dtype=relevance.dtype, device=relevance.device, requires_grad=True
        )
        with torch.enable_grad():
            reached = self({tokens: probe}, [source])[source]
            parts = torch.where(
                reached == 0, torch.zeros_like(relevance), relevance / reached.detach()
            )
            total = (reached * parts.detach()).sum()
        (result,) = torch.autograd.grad(total, probe)
        return result
