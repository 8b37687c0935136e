"""GradCAM on the last attention layer, a baseline of the CVPR 2021 paper."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from captum_transformer.attr.attention_flow_method import (
    gradient_map,
    output_gradients,
)
from captum_transformer.attr.selection import Selection
from captum_transformer.attr.single_layer_method import SingleLayerMethod
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import Attended, MapBlock
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.heads import by_head, from_heads, require_sets_apart
from captum_transformer.trace.numeric import quotient
from captum_transformer.trace.value import Value


class AttentionGradCam(SingleLayerMethod):
    r"""GradCAM with the heads of an attention layer as its channels.

    Each head is weighted by its mean gradient, the weighted maps are averaged and clipped:
    :math:`\mathrm{cam} = \big(E_h[w_h A_h]\big)^+`, and scaled to between zero and one. The
    result is the row that the target is read from. If the map is zero everywhere, the result is
    zero (the authors' code gives NaN).

    Args:
        forward_func: the model or any callable that runs one.
        layer: the index among the attention calls that the target depends on; negative counts from
            the last. If the target is read from several towers, each has its own.
        pooling: what the gradient is averaged over and the map is scaled by. ``"row"``: the row
            that the target is read from, without learned tokens, as in the authors' code for ViTs.
            Tokens of inputs that are not explained are also left out, so the result for an input
            depends on which others are explained with it. ``"map"``: the whole map, as in their
            code for BERT. ``"open"``: the whole map except for keys that are masked for all
            queries and, in self-attention, the queries of these tokens, so padding does not
            count.
        rescale: scale the map to between zero and one. The ICCV 2021 code does so for models with
            one stream, but not with cross-attention.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `Grad-CAM <https://arxiv.org/abs/1610.02391>`_, a baseline in `Transformer
        Interpretability Beyond Attention Visualization <https://arxiv.org/abs/2012.09838>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> AttentionGradCam(model).attribute_tokens(torch.rand(2, 3, 32, 32), target=3).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        layer: int = -1,
        pooling: Literal["row", "map", "open"] = "row",
        rescale: bool = True,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, layer=layer, checkpoint=checkpoint)
        if pooling not in ("row", "map", "open"):
            raise ValueError(f"pooling must be 'row', 'map' or 'open', got {pooling!r}.")
        self.pooling = pooling
        self.rescale = rescale

    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:
        gradients = gradient_map(output_gradients(selection.forward, selection.selected, calls))
        if self.pooling == "row":
            raise UnsupportedOperationError(
                "pooling='row' gives one row, not a map: use pooling='map' or pooling='open'."
            )
        pairs = self._pairs(selection)
        cams = {call: self._cam(call, gradients, *pairs[call]) for call in calls}
        return lambda call, rows: cams[call][..., rows, :]

    def _flow(self, selection: Selection) -> TokenFlow:
        if self.pooling != "row":
            self._pairs(selection)
            return super()._flow(selection)
        forward, calls = selection.forward, list(self._pairs(selection))
        gradients = gradient_map(output_gradients(forward, selection.selected, calls))

        def attend(call: AttentionCall, shares: Tensor) -> Attended:
            columns = _token_columns(forward, call, selection.wanted, shares)
            return self._row(call, gradients, shares, columns)

        return TokenFlow(forward.tape, {call.layer: attend for call in calls}, skip=False)

    def _check_causal(self, forward: TracedForward) -> None:  # noqa: ARG002
        if self.pooling != "row":
            raise UnsupportedOperationError(
                f"pooling={self.pooling!r} averages and scales over the rows of later tokens as "
                f"well, so it can't explain generated tokens one by one. Use pooling='row'."
            )

    def _cam(self, call: AttentionCall, gradients: MapBlock, queries: str, keys: str) -> Tensor:
        """Returns the map, which is the same for each head.

        Args:
            call: the attention call.
            gradients: the gradients at its map.
            queries: the name of the tokens that attend.
            keys: the name of the tokens that they attend to.
        """
        require_sets_apart(call)
        every = slice(None)
        probabilities = call.probabilities(every)
        attended, slopes = by_head(call, probabilities), by_head(call, gradients(call, every))
        counts = torch.ones_like(attended[:, :1], dtype=torch.bool)
        if self.pooling == "open":
            counts = (attended > 0).any((1, 2), keepdim=True).expand_as(counts)
            if queries == keys and counts.shape[-1] == counts.shape[-2]:
                counts = counts & counts.mT
        number = counts.sum((-1, -2), keepdim=True).clamp(min=1)
        weights = (slopes * counts).sum((-1, -2), keepdim=True) / number
        cam = (weights * attended).mean(1, keepdim=True).relu()
        if self.rescale:
            low = cam.masked_fill(~counts, torch.inf).amin((-1, -2), keepdim=True)
            high = cam.masked_fill(~counts, 0.0).amax((-1, -2), keepdim=True)
            cam = _scaled(cam - low, high - low).masked_fill(~counts, 0.0)
        return from_heads(call, cam.expand_as(attended), probabilities)

    def _row(
        self, call: AttentionCall, gradients: MapBlock, shares: Tensor, columns: Tensor
    ) -> Attended:
        require_sets_apart(call)
        mean_gradient = attended = torch.zeros((), dtype=shares.dtype, device=shares.device)
        # The map is not linear in the shares: those of each head sum to one.
        of_rows = quotient(shares, shares.sum(-1, keepdim=True))
        for rows in call.blocks():
            share = of_rows[..., rows].unsqueeze(-2)
            mean_gradient = mean_gradient + share @ gradients(call, rows).to(share.dtype)
            attended = attended + share @ call.probabilities(rows).to(share.dtype)
        of_heads = by_head(call, attended)
        open_to_some = (of_heads > 0).any(1, keepdim=True).expand_as(of_heads)
        columns = columns.unsqueeze(-2) * from_heads(call, open_to_some, attended)
        weights = (mean_gradient * columns).sum(-1, keepdim=True)
        weights = weights / columns.sum(-1, keepdim=True).clamp(min=1)
        cam = by_head(call, weights * attended).mean(1, keepdim=True).relu()
        kept = by_head(call, columns)[:, :1] > 0
        scaled = cam
        if self.rescale:
            low = cam.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
            scaled = _scaled(cam - low, cam.masked_fill(~kept, 0.0).amax(-1, keepdim=True) - low)
        total = by_head(call, shares.unsqueeze(-2)).sum((1, 3), keepdim=True)
        scaled = scaled.masked_fill(~kept, 0.0) * total
        keys = _to_heads(call, scaled, attended).squeeze(-2)
        return Attended(keys, total.sum(), scaled.sum())


def _token_columns(
    forward: TracedForward, call: AttentionCall, wanted: Sequence[Value], like: Tensor
) -> Tensor:
    """Returns one for each key of the call that was made from an input, zero for learned ones."""
    value = call.value.value
    if value is None:
        return like.new_ones(call.map_shape()[-1])
    part = TokenFlow(forward.tape, {}).comes_from_input(value, wanted, like)
    return (call.as_values(part)[..., 0] > 0.5).to(like.dtype)


def _scaled(tensor: Tensor, span: Tensor) -> Tensor:
    # NaN stays NaN: it does not become a map of zeros.
    return torch.where(span <= 0, 0.0, tensor / torch.where(span <= 0, 1.0, span))


def _to_heads(call: AttentionCall, cam: Tensor, like: Tensor) -> Tensor:
    """Divides a map that all heads share evenly among the heads."""
    of_heads = by_head(call, like)
    return from_heads(call, (cam / of_heads.shape[1]).expand_as(of_heads), like)
