"""Chefer, Gur & Wolf (ICCV 2021): generic attention-model explainability."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_transformer.attr.attention_flow_method import (
    Question,
    gradient_map,
    output_gradients,
)
from captum_transformer.attr.rollout_method import Propagation, RolloutMethod
from captum_transformer.rules.co_attention import RelevanceUpdate
from captum_transformer.rules.flow import MapBlock
from captum_transformer.trace.attention import AttentionCall


class GenericAttentionRelevance(RolloutMethod):
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

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        start_layer: int = 0,
        propagation: Propagation = "paper",
        normalize: bool = True,
        contextualize: bool = True,
    ) -> None:
        super().__init__(forward_func, start_layer=start_layer, propagation=propagation)
        self.normalize = normalize
        self.contextualize = contextualize

    def _maps(self, question: Question, calls: Sequence[AttentionCall]) -> MapBlock:
        forward, selected = question.forward, question.selected
        gradients = gradient_map(output_gradients(forward, selected, calls))

        def block(call: AttentionCall, rows: slice) -> Tensor:
            return (gradients(call, rows) * call.probabilities(rows)).relu()

        return block

    def _update_rule(self) -> RelevanceUpdate:
        return RelevanceUpdate(normalize=self.normalize, contextualize=self.contextualize)
