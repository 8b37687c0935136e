"""The base class of methods that pass relevance from token to token by attention maps."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer.account import Account
from captum_transformer.attr.accounting import AccountableMethod
from captum_transformer.attr.selection import Selection
from captum_transformer.attr.transformer_method import START, seed
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.ledger import Ledger
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.heads import by_head
from captum_transformer.trace.history import History
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.seams import GradientsInOrder
from captum_transformer.trace.value import Value


class AttentionFlowMethod(AccountableMethod):
    """A method whose relevance is the target's token flow through a map of each attention call.

    The flow goes on through the operation that made the tokens: a token's relevance is spread
    evenly over the input values that the token was made from, so that sums are kept.

    Attention among a token's channels (XCiT, DaViT) has no map of tokens: it is treated like an
    MLP, with a warning.
    """

    # Methods whose maps are the same for all classes work without a target.
    _class_specific = True

    @property
    def _reads_maps(self) -> bool:
        """Whether relevance is computed from attention maps, which not all attention has."""
        return True

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        carried, _ = self._carried(self._selection(forward, target, wanted))
        # Tiny values are kept: for a class that is nearly ruled out, the gradient is about zero.
        return {value: tensor / START for value, tensor in carried.items()}

    def _relevance_within(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        if not self._reads_maps:
            return self._relevance(forward, target, wanted)
        carried, ledger = self._carried(self._selection(forward, target, wanted))
        for value in wanted:
            if value not in ledger.reached:
                made = value.operation
                raise UnsupportedOperationError(
                    f"{type(self).__name__} has no relevance for the tensor of shape "
                    f"{tuple(value.shape)} that {made.described if made else 'no operation'} "
                    "has made: relevance goes from token to token along skip connections and "
                    "through attention, and never passes this tensor. The tensor is in a branch, "
                    "such as inside an MLP, or after the last attention that counts. Choose "
                    "the output of an earlier block, `propagation='flow'` where there is "
                    "cross-attention, or a method that follows each feature, such as AttnLRP."
                )
        return {value: tensor / START for value, tensor in carried.items()}

    def _heads(
        self, forward: TracedForward, target: Any, calls: Sequence[AttentionCall]
    ) -> dict[AttentionCall, Tensor]:
        """Returns the part of its queries' shares that each head's map passes on."""
        if not self._reads_maps:
            return super()._heads(forward, target, calls)
        selection = self._selection(forward, target, [call.output for call in calls])
        flow = self._flow(selection)
        flow.direct = True  # shares at a call's output have yet to pass the call
        seeds = seed(selection.forward, selection.selected, selection.value, start=START)
        shares, _ = flow.conserved(seeds, selection.wanted)
        maps = self._maps(selection, [call for call in calls if call.layer in flow.layers])
        heads = {}
        for call in calls:
            share = by_head(call, call.outputs(shares[call.output])).sum(-1) / START
            sums = torch.zeros_like(share)
            if call.layer in flow.layers:
                sums = by_head(call, row_sums(maps, call).unsqueeze(-1)).squeeze(-1)
            heads[call] = share * sums
        return heads

    def _account(self, forward: TracedForward, target: Any) -> Account:
        """Accounts for the sum over all tokens of the row that the score is read from."""
        selection = self._selection(forward, target, forward.values)
        return self.written_up(forward, self._carried(selection)[1])

    def _carried(self, selection: Selection) -> tuple[dict[Value, Tensor], Ledger]:
        """Returns the shares that flow from the score to the wanted values, and the ledger."""
        flow = self._flow(selection)
        flow.require_way(selection.value, selection.wanted)
        seeds = seed(selection.forward, selection.selected, selection.value, start=START)
        return flow.conserved(seeds, selection.wanted, arriving=True)

    def _selection(self, forward: TracedForward, target: Any, wanted: Sequence[Value]) -> Selection:
        selection = Selection(forward, *self._select(forward, target), wanted)
        selection.history.layers()
        if self._reads_maps:
            warn_of_channels(selection.history)
        return selection

    def _select(self, forward: TracedForward, target: Any) -> tuple[Tensor, Value]:
        return forward.select(target, mean_if_none=not self._class_specific)

    @abstractmethod
    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:
        """Returns a function that computes the method's map of each attention call."""

    @abstractmethod
    def _flow(self, selection: Selection) -> TokenFlow:
        """Returns the token flow with the method's maps."""


def warn_of_channels(history: History) -> None:
    """Warns once if some of the attention has no map of tokens.

    With constant weights, attention among channels multiplies every token's features by a matrix,
    so it keeps tokens separate, as an MLP does. Without other attention, an error is raised
    elsewhere.
    """
    count, among_tokens = len(history.channel_calls), len(history.calls)
    if count and among_tokens:
        history.warn_once(
            f"{count} of {count + among_tokens} attention calls are among channels, not among "
            "tokens (as in XCiT and DaViT). With constant weights they mix the features of each "
            "token separately, so they have no map of tokens, and what they add to a token is "
            "attributed to that token. How tokens influence each other through these weights is "
            "ignored: AttnLRP, or TransformerAttribution with `propagate_to_input=True`, "
            "follows that too."
        )


def output_gradients(
    forward: TracedForward, selected: Tensor, calls: Sequence[AttentionCall]
) -> dict[AttentionCall, Tensor]:
    """Returns the gradient of the selected scores at the calls' outputs, as ``(..., Q, D)``."""
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


def selected_gradients(
    selection: Selection, calls: Sequence[AttentionCall]
) -> Mapping[AttentionCall, Tensor]:
    """Returns a selection's output gradients, block by block if maps are requested in order."""
    in_order = gradients_in_order(selection, calls)
    if in_order is not None:
        return in_order
    return output_gradients(selection.forward, selection.selected, calls)


def gradients_in_order(
    selection: Selection, calls: Sequence[AttentionCall]
) -> "OutputGradients | None":
    """Returns a selection's output gradients block by block.

    Returns:
        None if maps are not requested in order, or there are no blocks that run again.
    """
    if selection.checks is None:
        return None
    found = selection.forward.gradients_in_order(selection.selected, calls)
    if found is None:
        return None
    return OutputGradients(found, accumulation_dtype(selection.selected.dtype))


class OutputGradients(Mapping[AttentionCall, Tensor]):
    """Output gradients that are computed when they are accessed, as ``(..., Q, D)``."""

    def __init__(self, found: GradientsInOrder, dtype: torch.dtype) -> None:
        self.found, self._dtype = found, dtype

    def __getitem__(self, call: AttentionCall) -> Tensor:
        return call.outputs(self.found[call].to(self._dtype))

    def __iter__(self) -> Iterator[AttentionCall]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


def gradient_map(gradients: Mapping[AttentionCall, Tensor]) -> MapBlock:
    """Returns a function that computes the gradient at attention probabilities: ``dO V^T``."""

    def block(call: AttentionCall, rows: slice) -> Tensor:
        gradient = gradients[call][..., rows, :]
        return gradient @ call.values().transpose(-1, -2).to(gradient.dtype)

    return block


def row_sums(maps: MapBlock, call: AttentionCall) -> Tensor:
    """Returns the sum of each row of a call's map: ``(..., Q)``."""
    first, *others = call.blocks()
    block = maps(call, first).sum(-1)
    # One tensor for all blocks: small tensors kept between blocks would fragment the memory.
    sums = block.new_empty(*block.shape[:-1], call.map_shape()[-2])
    sums[..., first] = block
    for rows in others:
        sums[..., rows] = maps(call, rows).sum(-1)
    return sums
