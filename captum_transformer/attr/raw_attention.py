"""One layer's attention probabilities, as they are: the simplest baseline."""

from collections.abc import Sequence

from captum_transformer.attr.selection import Selection
from captum_transformer.attr.single_layer_method import SingleLayerMethod
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.trace.attention import AttentionCall


class RawAttention(SingleLayerMethod):
    r"""The attention of one layer, averaged over its heads: :math:`E_h[A]`.

    The result is the row of the layer's map that the target is read from. The map is the same for
    all classes, so ``target`` only matters if outputs are read from different tokens, and may
    be left out for a model that returns a tensor.

    Args:
        forward_func: the model or any callable that runs one.
        layer: the index among the attention calls that the target depends on; negative counts from
            the last. If the target is read from several towers, each has its own.
        checkpoint: as in :class:`TransformerMethod`.

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

    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:  # noqa: ARG002
        return lambda call, rows: call.probabilities(rows)
