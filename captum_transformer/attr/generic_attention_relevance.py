"""Chefer, Gur & Wolf (ICCV 2021): generic attention-model explainability."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum._utils.typing import TargetType
from captum.log import log_usage
from torch import Tensor

from captum_transformer.attr.attention_flow_method import (
    AttentionFlowMethod,
    Question,
    from_layer,
    gradient_map,
    output_gradients,
    rollout,
)
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow import MapBlock, TokenFlow
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.isolation import in_full_precision


class GenericAttentionRelevance(AttentionFlowMethod):
    r"""Relevance from attention times its gradient, layer by layer (often called GAE).

    With the attention probabilities :math:`A` of a layer and the target's gradient there, each
    layer updates the relevancies between tokens (eq. 5 and 6 of the paper):

    .. math:: \bar A = E_h\big[(\nabla A \odot A)^+\big], \qquad R \leftarrow R + \bar A R

    starting from :math:`R = I`. The relevance of the input tokens is the row of :math:`R` that
    the target is read from (a class token, the last token, the mean over tokens, whatever the
    model does). Rows are not normalised and all layers count, as in the authors' code. The
    authors overwrite the entry of ``[CLS]`` in text models; here it keeps its relevance.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: attention calls before this one contribute nothing; negative counts from
            the last.

    Reference:
        `Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
        Transformers <https://arxiv.org/abs/2103.15679>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> method = GenericAttentionRelevance(model)
        >>> method.attribute(images, target=torch.tensor([3, 7])).shape
        torch.Size([2, 3, 32, 32])
        >>> method.attribute_tokens(images, target=3).shape
        torch.Size([2, 4])
    """

    def __init__(self, forward_func: Callable[..., Any], *, start_layer: int = 0) -> None:
        super().__init__(forward_func)
        self.start_layer = start_layer

    def _flow(self, question: Question) -> TokenFlow:
        calls = from_layer(question.forward, self.start_layer)
        maps = _weighted_attention(question.forward, question.selected, calls)
        return rollout(question.forward, calls, maps, normalize_rows=False)

    @log_usage()
    def relevance_maps(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: Any = None,
    ) -> dict[tuple[str, str], Tensor]:
        """The full map R of how relevant each token is to each other one.

        Args:
            inputs: as in :meth:`attribute`.
            target: as in :meth:`attribute`.
            additional_forward_args: as in :meth:`attribute`.

        Returns:
            ``{(queries, keys): R}`` with ``R`` of shape ``(samples, tokens, tokens)``, learned
            tokens included, under the name of the forward function's argument.

        Raises:
            UnsupportedOperationError: if the attention calls do not all run over the same tokens,
                as in window, hierarchical or cross-attention models.
        """
        with self._traced(inputs, additional_forward_args) as forward:
            calls = from_layer(forward, self.start_layer)
            selected, _ = forward.select(target)
            with in_full_precision(forward.inputs[0].device):
                maps = _weighted_attention(forward, selected, calls)
                relevance = _accumulate(calls, maps, forward.inputs[0].shape[0])
            name = "+".join(forward.names)
        return {(name, name): relevance.detach()}


def _weighted_attention(
    forward: TracedForward, selected: Tensor, calls: Sequence[AttentionCall]
) -> MapBlock:
    gradients = gradient_map(output_gradients(forward, selected, calls))

    def block(call: AttentionCall, rows: slice) -> Tensor:
        return (gradients(call, rows) * call.probabilities(rows)).relu()

    return block


def _accumulate(calls: Sequence[AttentionCall], maps: MapBlock, batch: int) -> Tensor:
    relevance: Tensor | None = None
    for call in calls:
        attention = torch.cat([maps(call, rows) for rows in call.blocks()], -2)
        attention = call.by_head(attention).mean(1)
        samples, queries, keys = attention.shape
        if relevance is None:
            eye = torch.eye(keys, dtype=attention.dtype, device=attention.device)
            relevance = eye.expand(batch, keys, keys)
        if (samples, queries, keys) != relevance.shape:
            raise UnsupportedOperationError(
                f"Attention call {call.layer} ({call.module}) runs over {queries} queries and "
                f"{keys} keys of {samples} samples or windows; there are {batch} samples, and "
                f"the first call has {relevance.shape[-1]} keys: their maps can't be multiplied. "
                "Use `attribute_tokens`, which follows the tokens wherever they go."
            )
        relevance = relevance + attention @ relevance
    if relevance is None:
        raise RuntimeError("from_layer returns at least one call")
    return relevance
