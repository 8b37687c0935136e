"""Voita et al. (ACL 2019): relevance propagated only as far as one layer's attention."""

from collections.abc import Callable
from typing import Any

from captum_transformer.attr.attention_flow_method import (
    AttentionFlowMethod,
    Question,
    single_layer,
)
from captum_transformer.attr.transformer_attribution import relevance_map
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.flow import TokenFlow


class PartialLRP(AttentionFlowMethod):
    r"""The relevance of one layer's attention probabilities: :math:`E_h[(R^{(A)})^+]`.

    Of the layer's map the row is returned that the target is read from. The relevance is
    propagated as in :class:`TransformerAttribution`.

    Args:
        forward_func: the model or any callable that runs one.
        layer: which attention call; negative counts from the last.
        gradient_weighting: multiply by the gradient, :math:`E_h[(\nabla A \odot R^{(A)})^+]`, as
            in the ablations of the CVPR 2021 paper.

    Reference:
        `Analyzing Multi-Head Self-Attention <https://arxiv.org/abs/1905.09418>`_, as it is
        compared with in `Transformer Interpretability Beyond Attention Visualization
        <https://arxiv.org/abs/2012.09838>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> PartialLRP(model).attribute_tokens(torch.rand(2, 3, 32, 32), target=3).shape
        torch.Size([2, 4])
    """

    _keep = flow.KEEP | relevance.KEEP

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        layer: int = -1,
        gradient_weighting: bool = False,
    ) -> None:
        super().__init__(forward_func)
        self.layer = layer
        self.gradient_weighting = gradient_weighting

    def _flow(self, question: Question) -> TokenFlow:
        call = question.forward.layer(self.layer)
        maps = relevance_map(question, [call], weighted=self.gradient_weighting)
        return single_layer(question.forward, call, maps)
