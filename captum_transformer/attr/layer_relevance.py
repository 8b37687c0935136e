"""The relevance of layers through Captum's interface for layer methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from captum.attr import LayerAttribution
from torch import Tensor

from captum_transformer.attr.logged import logged
from captum_transformer.attr.transformer_method import TransformerMethod
from captum_transformer.calling.arguments import Inputs
from captum_transformer.calling.layers import Layer, chosen_layers
from captum_transformer.calling.target import Target


class LayerRelevance(LayerAttribution):
    """A method's relevance of layers, called as Captum's ``LayerAttribution`` methods are.

    It is :meth:`TransformerMethod.attribute_layers` in another form.

    Args:
        method: the method, created with the model.
        layer: a module, its dotted name, or a tuple of one of these and the number of a call; a
            list for several layers.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import AttnLRP, LayerRelevance
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
        >>> images = torch.rand(1, 3, 32, 32)
        >>> LayerRelevance(AttnLRP(model), model.blocks[0]).attribute(images, target=3).shape
        torch.Size([1, 5, 192])
        >>> both = LayerRelevance(AttnLRP(model), ["blocks.0", "blocks.1"])
        >>> len(both.attribute(images, target=3))
        2
    """

    def __init__(self, method: TransformerMethod, layer: Layer | Sequence[Layer]) -> None:
        layers: Any = layer if isinstance(layer, list) else [layer]
        modules: Any = [chosen.module for chosen in chosen_layers(method.forward_func, layers)]
        super().__init__(method.forward_func, modules if isinstance(layer, list) else modules[0])
        self.method = method
        self._layers: list[Layer] = layers

    @logged
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...] | list[Tensor | tuple[Tensor, ...]]:
        """Attributes the target's score to the layer.

        The arguments are those of :meth:`TransformerMethod.attribute_layers`.

        Returns:
            The layer's relevance, with the shape of its output or input; a tuple for several
            tensors, and a list for a list of layers.

        Raises:
            InvalidLayerError: if there is no such layer, if it does not run, or runs several times,
                or if the score does not depend on it.
        """
        found = self.method.attribute_layers(
            inputs,
            self._layers,
            target,
            additional_forward_args,
            attribute_to_layer_input=attribute_to_layer_input,
            additional_forward_kwargs=additional_forward_kwargs,
            internal_batch_size=internal_batch_size,
            show_progress=show_progress,
        )
        return found if isinstance(self.layer, list) else found[0]
