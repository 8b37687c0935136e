"""Abnar & Zuidema (ACL 2020): attention rollout."""

from collections.abc import Callable
from typing import Any

from captum_transformer.attr.attention_flow_method import (
    AttentionFlowMethod,
    Question,
    from_layer,
    rollout,
)
from captum_transformer.rules.flow import TokenFlow


class AttentionRollout(AttentionFlowMethod):
    r"""Attention maps with the residual connections, multiplied over the layers.

    .. math:: \hat A = \mathrm{rownorm}(I + E_h[A]), \qquad
              \hat A^{(L)} \cdots \hat A^{(s)}

    The row is returned that the target is read from. The maps are the same for all classes, so
    ``target`` matters only where outputs are read from different tokens, and may be left out for a
    model that returns a tensor.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: attention calls before this one contribute nothing; negative counts from
            the last.
        normalize_rows: divide each row of :math:`I + E_h[A]` by its sum, as the paper does.

    Reference:
        `Quantifying Attention Flow in Transformers <https://arxiv.org/abs/2005.00928>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> AttentionRollout(model).attribute_tokens(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """

    _class_specific = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        start_layer: int = 0,
        normalize_rows: bool = True,
    ) -> None:
        super().__init__(forward_func)
        self.start_layer = start_layer
        self.normalize_rows = normalize_rows

    def _flow(self, question: Question) -> TokenFlow:
        calls = from_layer(question.forward, self.start_layer)
        return rollout(
            question.forward,
            calls,
            lambda call, rows: call.probabilities(rows),
            normalize_rows=self.normalize_rows,
        )
