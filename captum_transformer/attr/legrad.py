"""Bousselham et al. (ICCV 2025): LeGrad, the sensitivity of each layer's score to its attention."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer.attr.attention_flow_method import (
    gradient_map,
    output_gradients,
    warn_of_channels,
)
from captum_transformer.attr.layer_scores import LayerScores
from captum_transformer.attr.selection import Selection
from captum_transformer.attr.transformer_method import TransformerMethod
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.heads import by_head
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import quotient
from captum_transformer.trace.tokens import per_token, spread_over_tokens, token_value
from captum_transformer.trace.value import Value


class LeGrad(TransformerMethod):
    r"""How much a layer's attention to a token increases the score read from that layer.

    The score of layer :math:`l` is what the model's own head (final norm, pooling, projection, the
    product with a text) returns for that layer's tokens: :math:`s^l = \mathrm{head}(Z^l)`. The
    positive part of its gradient at the attention of the same layer is averaged over heads and
    queries, and summed over the layers:

    .. math:: E_j = \sum_l \frac{1}{H N} \sum_{h, i} \big(\partial s^l / \partial A^l_{h i j}\big)^+

    A class token is not an input, so its share is left out, and the rest is scaled to lie between
    zero and one. Keys that are masked for all queries get zero and don't count for the scale.
    A constant map becomes zero.

    If the head begins with attention by learned queries, as in SigLIP, the gradient is taken at the
    pooler's attention to each layer's tokens.

    The authors' code for CLIP reads the mean of all tokens instead of the class token, and takes
    the last two layers by default (``start_layer=-2``).

    Information that a layer stores for later layers, in tokens that the head does not read, doesn't
    change the layer's own score and is ignored.

    A baseline for models with a class token and those like CLIP. Each tower is scaled separately.
    Models whose layers have different numbers of tokens are refused, and so is cross-attention.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: layers before this one contribute nothing; negative counts from the last.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity
        <https://arxiv.org/abs/2404.03214>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> LeGrad(model).attribute_tokens(torch.rand(2, 3, 32, 32), target=3).shape
        torch.Size([2, 4])
    """

    # The head, and each layer, run once more.
    _keep = frozenset(Kind)
    adds_up_layers = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        start_layer: int = 0,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, checkpoint=checkpoint)
        self.start_layer = start_layer

    def _check_causal(self, forward: TracedForward) -> None:  # noqa: ARG002
        raise UnsupportedOperationError(
            "LeGrad scales over all tokens, including later ones, so it can't explain generated "
            "tokens one by one. Use GenericAttentionRelevance, AttnLRP or ConservativeLRP."
        )

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        selection = Selection(forward, *self._select(forward, target), wanted)
        history = selection.history
        history.layers()
        warn_of_channels(history)
        if history.streams.cross_attention:
            raise UnsupportedOperationError(
                "LeGrad lets the model's head read the tokens of each layer. Here one set of "
                "tokens attends to another, so no head reads those of one set alone. Use "
                "GenericAttentionRelevance, which has rules for cross-attention."
            )
        flow = TokenFlow(forward.tape, {})
        tokens = [token_value(value, history) for value in forward.values]
        shares: dict[Value, Tensor] = {}
        opened: dict[Value, Tensor] = {}
        for call, gradients in self._gradients(selection):
            value = call.value.value
            if value is None or not flow.has_way(value, tokens):
                raise UnsupportedOperationError(
                    f"What attention call {call.layer} ({call.module}) attends to was made of the "
                    "inputs by attention without a skip beside it, as latents are that read a "
                    "text, so the sensitivity to it leads back to no token. Use AttentionRollout, "
                    "GenericAttentionRelevance, or AttnLRP."
                )
            for found, of_keys in zip((shares, opened), _columns(call, gradients), strict=True):
                found[value] = found[value] + of_keys if value in found else of_keys
        sums, counts = flow(shares, tokens), flow(opened, tokens)
        relevance: dict[Value, Tensor] = {}
        for value, source in zip(tokens, forward.values, strict=True):
            scaled = _scaled(per_token(sums[value], value), per_token(counts[value], value) > 0)
            at_tokens = (
                scaled.reshape(value.shape)
                if value.holds_ids
                else spread_over_tokens(scaled, value)
            )
            relevance |= flow({value: at_tokens}, [source]) | {value: at_tokens}
        return relevance

    def _gradients(self, selection: Selection) -> Iterator[tuple[AttentionCall, MapBlock]]:
        """Yields the attention calls that contribute, each with the gradient at its map."""
        forward = selection.forward
        for layers, start in selection.layers_of_towers(self.start_layer):
            if all(call.output.learned for layer in layers for call in layer):
                continue  # such as the tower of a text that is not among the inputs
            scores = LayerScores(forward.tape, selection.value, layers)
            pooler, count = scores.pooler, len(scores.layers)
            for layer in range(start, count - 1):
                reading = scores.reading(layer)
                if pooler is None:
                    slopes = scores.back_to(layer, reading.slope(reading.tokens))
                    yield from ((call, gradient_map({call: slopes[call]})) for call in slopes)
                    continue
                slope = pooler.outputs(reading.slope(reading.found[pooler.output]))
                yield pooler, _at_pooler(pooler, slope, reading.found)
            last = [pooler] if pooler is not None else list(scores.layers[-1])
            slopes = output_gradients(forward, selection.selected, last)
            yield from ((call, gradient_map(slopes)) for call in last)


def _at_pooler(pooler: AttentionCall, slope: Tensor, found: Any) -> MapBlock:
    """Returns a function for the gradient at the pooler's attention to another layer's tokens."""
    values = pooler.as_values(found[pooler.value.value]).detach().transpose(-1, -2)
    return lambda _, rows: slope[..., rows, :] @ values


def _columns(call: AttentionCall, gradients: MapBlock) -> tuple[Tensor, Tensor]:
    """Returns the positive gradient's mean over heads and queries, and the keys that aren't masked.

    Both have the layout of the call's values. A key is masked if it is so for all queries.
    """
    positive: Tensor | None = None
    reached: Tensor | None = None
    for rows in call.blocks():
        attended = call.probabilities(rows)
        is_open = attended != 0
        # A NaN in the attention stays NaN, whatever the gradient is.
        some = (gradients(call, rows).clamp(min=0) * is_open + 0 * attended).sum(-2)
        positive = some if positive is None else positive + some
        opened = is_open.any(-2)
        reached = opened if reached is None else reached | opened
    if positive is None or reached is None:
        raise RuntimeError("an attention call has at least one query")
    heads = by_head(call, positive.unsqueeze(-2)).shape[1]
    positive = positive / (heads * call.map_shape()[-2])
    width = call.values_width()
    return tuple(  # type: ignore[return-value]
        call.to_values((keys / width).unsqueeze(-1).expand(*keys.shape, width))
        for keys in (positive, reached.to(positive.dtype))
    )


def _scaled(relevance: Tensor, counts: Tensor) -> Tensor:
    """Scales relevance to between zero and one over the tokens that count; NaN stays NaN."""
    low = relevance.masked_fill(~counts, torch.inf).amin(1, keepdim=True)
    high = relevance.masked_fill(~counts, -torch.inf).amax(1, keepdim=True)
    return quotient(relevance - low, high - low).masked_fill(~counts, 0.0)
