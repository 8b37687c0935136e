"""One layer's attention probabilities, as they are: the simplest baseline."""

from collections.abc import Callable
from typing import Any

from captum_transformer.attr.attention_flow_method import (
    AttentionFlowMethod,
    Question,
    single_layer,
)
from captum_transformer.rules.flow import TokenFlow


class RawAttention(AttentionFlowMethod):
    r"""The attention of one layer, averaged over its heads: :math:`E_h[A]`.

    Of the layer's map the row is returned that the target is read from. The map is the same for
    all classes, so ``target`` matters only where outputs are read from different tokens, and may
    be left out for a model that returns a tensor.

    Args:
        forward_func: the model or any callable that runs one.
        layer: which attention call; negative counts from the last.

    Reference:
        A baseline of `Transformer Interpretability Beyond Attention Visualization
        <https://arxiv.org/abs/2012.09838>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> RawAttention(model).attribute_tokens(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """

    _class_specific = False

    def __init__(self, forward_func: Callable[..., Any], *, layer: int = -1) -> None:
        super().__init__(forward_func)
        self.layer = layer

    def _flow(self, question: Question) -> TokenFlow:
        call = question.forward.layer(self.layer)
        return single_layer(question.forward, call, lambda call, rows: call.probabilities(rows))
