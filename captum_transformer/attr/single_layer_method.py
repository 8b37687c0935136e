"""The base class of methods that read a single layer's map."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from captum_transformer.attr.attention_flow_method import AttentionFlowMethod
from captum_transformer.attr.logged import logged
from captum_transformer.attr.selection import Selection
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.calling.target import Target
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import attend_with, averaged_over_heads, by_heads
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.trace.attention import AttentionCall


class SingleLayerMethod(AttentionFlowMethod):
    """A method that reads a row of one attention layer's map: the one the target is read from.

    Args:
        forward_func: the model or any callable that runs one.
        layer: the index of the layer of attention calls, among those that the target depends on;
            negative counts from the last. Calls that don't depend on each other are one layer. If
            the target is read from several towers, each has its own layers.
        checkpoint: as in :class:`TransformerMethod`.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        layer: int = -1,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, checkpoint=checkpoint)
        self.layer = layer

    def _flow(self, selection: Selection) -> TokenFlow:
        calls = selection.layer(self.layer)
        attend = attend_with(self._maps(selection, calls))
        return TokenFlow(selection.forward.tape, {call.layer: attend for call in calls}, skip=False)

    def _pairs(self, selection: Selection) -> dict[AttentionCall, tuple[str, str]]:
        """Returns the layer's attention calls, with the names of the tokens that each pairs.

        Raises:
            UnsupportedOperationError: if several of them pair the same tokens.
        """
        streams = selection.history.streams
        names = dict(zip(streams.calls, streams.pairs(), strict=True))
        pairs = {call: names[call] for call in selection.layer(self.layer)}
        if len(set(pairs.values())) < len(pairs):
            raise UnsupportedOperationError(
                f"The layer has {len(pairs)} attention calls side by side on the same tokens, as "
                "where branches, heads, samples or queries are computed one by one: there are "
                f"maps of {[call.map_shape() for call in pairs]}, so it has no map of its own. "
                "RawAttention and PartialLRP can `attribute` it: they add up what each of them "
                "passes on."
            )
        return pairs

    @logged
    def relevance_maps(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        average_heads: bool = True,
    ) -> dict[tuple[str, str], Tensor]:
        """Returns the layer's whole map.

        The arguments are those of :meth:`attribute`. Heads are kept separate without
        ``average_heads``.

        Returns:
            ``{(queries, keys): map}`` with a map of shape ``(samples, queries, keys)``, or
            ``(samples, heads, queries, keys)``, under the names of the sets of tokens that the
            layer connects; more than one map for several towers.

        Raises:
            UnsupportedOperationError: if several calls of the layer connect the same tokens.

        Example:
            >>> import timm, torch
            >>> from captum_transformer import RawAttention
            >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
            >>> method = RawAttention(model, layer=0)
            >>> maps = method.relevance_maps(torch.rand(1, 3, 32, 32), 0, average_heads=False)
            >>> maps["x", "x"].shape  # a class token and 2 x 2 patches, in three heads
            torch.Size([1, 3, 5, 5])
        """
        arguments = Arguments[Any](inputs, additional_forward_args, additional_forward_kwargs)
        with self._traced(arguments) as forward:
            selection = self._selection(forward, target, ())
            pairs = self._pairs(selection)
            with in_full_precision(forward.inputs[0].device):
                maps = self._maps(selection, list(pairs))
                whole = averaged_over_heads if average_heads else by_heads
                return {pair: whole(maps, call).detach() for call, pair in pairs.items()}
