"""Voita et al. (ACL 2019): relevance propagated only as far as one layer's attention."""

from collections.abc import Callable, Sequence
from typing import Any

from captum_transformer.attr.relevance_map import relevance_map
from captum_transformer.attr.selection import Selection
from captum_transformer.attr.single_layer_method import SingleLayerMethod
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.trace.attention import AttentionCall


class PartialLRP(SingleLayerMethod):
    r"""The relevance of one layer's attention probabilities: :math:`E_h[(R^{(A)})^+]`.

    The result is the row of the layer's map that the target is read from. The relevance is
    propagated as in :class:`TransformerAttribution`.

    Args:
        forward_func: the model or any callable that runs one.
        layer: the index among the attention calls that the target depends on; negative counts from
            the last. If the target is read from several towers, each has its own.
        gradient_weighting: multiply by the gradient, :math:`E_h[(\nabla A \odot R^{(A)})^+]`, as
            in the ablations of the CVPR 2021 paper.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `Analyzing Multi-Head Self-Attention <https://arxiv.org/abs/1905.09418>`_, a
        baseline in `Transformer Interpretability Beyond Attention Visualization
        <https://arxiv.org/abs/2012.09838>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> PartialLRP(model).attribute_tokens(torch.rand(2, 3, 32, 32), target=3).shape
        torch.Size([2, 4])
    """

    _keep = flow.KEEP | relevance.TABLE.keep

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        layer: int = -1,
        gradient_weighting: bool = False,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, layer=layer, checkpoint=checkpoint)
        self.gradient_weighting = gradient_weighting

    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:
        return relevance_map(selection, calls, weighted=self.gradient_weighting)
