"""Mehri et al. (CVPR 2025): LibraGrad, and FullGrad+ with its gradients."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.attr.gradient_times_input import (
    GradientTimesInput,
    inner_points,
)
from captum_transformer.attr.positional_method import Positions
from captum_transformer.attr.reached import refuse_reached
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.calling.layers import ChosenLayer, Layer, chosen_layers
from captum_transformer.calling.target import Target
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from captum_transformer.rules.constants import constant_part
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.gradient import libra
from captum_transformer.rules.streams.own_tokens import at_own_tokens
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.history import History
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.tokens import per_token
from captum_transformer.trace.value import Value


class LibraGrad(GradientTimesInput):
    r"""Gradient x input with every nonlinear factor held constant.

    The relevance of the inputs is :math:`R_i = x_i \cdot \partial f_c / \partial x_i`, where the
    gradient takes as constants the attention probabilities, the divisors of norms, and the
    slope :math:`f(x) / x` of an activation, and gives half to each factor of a gate. So the sum of
    the relevance is the score, except for the parts of biases, position embeddings and learned
    tokens, which :meth:`account` lists. These are the rules of :class:`RelevancePatching`, and
    those of :class:`ConservativeLRP` with the identity rule for activations.

    It costs one forward and one backward pass.

    Args:
        forward_func: the model or any callable that runs one.
        attention_rule: hold the attention probabilities constant; without it, products of attention
            keep their gradient.
        positions: as in :class:`AttnLRP`.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `LibraGrad: Balancing Gradient Flow for Universally Better Vision Transformer Attributions
        <https://arxiv.org/abs/2411.16760>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> LibraGrad(model).attribute(torch.rand(2, 3, 32, 32), target=3).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        attention_rule: bool = True,
        positions: Positions = "ignore",
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, positions=positions, checkpoint=checkpoint)
        self.attention_rule = attention_rule

    def _require_attention(self, history: History) -> None:
        if self.attention_rule:
            history.require_attention(weights=True)

    def _forward_rules(self, arguments: Arguments[Any]) -> ForwardRules:  # noqa: ARG002
        return libra(attention_rule=self.attention_rule)


class FullGradPlus(LibraGrad):
    r"""FullGrad+: the relevance of each token at the input of each layer, and of later biases.

    With the gradients of :class:`LibraGrad`, the tokens :math:`x^{(l)}` at the input of layer
    :math:`l`, and all biases :math:`b` after it, each at its own token :math:`i`:

    .. math:: R_i = \sum_l \Big( x_i^{(l)} \cdot \frac{\partial f_c}{\partial x_i^{(l)}}
              + \sum_{b \text{ behind } l} b \cdot \frac{\partial f_c}{\partial b_i} \Big)

    The map of each layer sums up to the score, except for the parts of learned tokens and positions
    that are added behind the layer, and of functions that have no rule, such as a router's softmax.
    A bias after the tokens, such as the classifier's, goes to the tokens that the score is read
    from. Tokens keep their places along skip connections; the output of an attention block belongs
    to the token that it is added to or, without a skip connection, that its query was made of.

    Args:
        forward_func: the model or any callable that runs one.
        layers: the layers, usually the model's blocks: modules or their dotted names.
        biases: include the contribution of biases.
        attention_rule: hold the attention probabilities constant.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        As :class:`LibraGrad`. The authors' code for vision includes biases; their code for language
        models, which have no biases, does not.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> method = FullGradPlus(model, list(model.blocks))
        >>> method.attribute_tokens(torch.rand(2, 3, 32, 32), target=3).shape
        torch.Size([2, 4])
    """

    adds_up_layers = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: Sequence[Layer],
        *,
        biases: bool = True,
        attention_rule: bool = True,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, attention_rule=attention_rule, checkpoint=checkpoint)
        self.layers = list(layers)
        if not self.layers:
            raise InvalidLayerError("FullGradPlus sums over layers: give at least one.")
        self.biases = biases

    def layer_maps(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Tensor]:
        """Returns the map of each layer separately, as in FullGrad.

        The arguments are those of :meth:`attribute`.

        Returns:
            For each layer ``(samples, tokens)``: all tokens at its input, including learned ones.
        """
        arguments = Arguments[Any](inputs, additional_forward_args, additional_forward_kwargs)
        with self._traced(arguments) as forward, in_full_precision(forward.inputs[0].device):
            found = self._at_layers(forward, target)
            return [per_token(found[inner.value], inner.value) for (inner,) in forward.layers]

    def _traced(
        self,
        arguments: Arguments[Any],
        *,
        account: bool = False,
        layers: Sequence[ChosenLayer] = (),  # noqa: ARG002 - it has its own
        layer_inputs: bool = False,  # noqa: ARG002 - it is the inputs that are added up
    ) -> AbstractContextManager[TracedForward]:
        if account:
            raise UnsupportedOperationError(
                "FullGradPlus adds up several layers, each with the whole score, so it has no "
                "account. LibraGrad has one."
            )
        chosen = chosen_layers(self.forward_func, self.layers)
        return super()._traced(arguments, account=self.biases, layers=chosen, layer_inputs=True)

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        return TokenFlow(forward.tape, {})(self._at_layers(forward, target), wanted)

    def _at_layers(self, forward: TracedForward, target: Any) -> dict[Value, Tensor]:
        """Returns the relevance of the entries of layers' inputs, with that of later biases."""
        selected, score = forward.select(target)
        self._require_attention(forward.history(score))
        refuse_reached(forward, selected, score)
        streams = self._streams(forward, score)
        found = self._gradient_times_input(forward, selected, inner_points(forward, streams))
        found = {value: found[value] for value in streams}
        if not self.biases:
            return found
        parts, calls = self._of_biases(forward, selected, streams), forward.history(score).layers()
        added = at_own_tokens(forward.tape, parts, streams, calls, whole=True)
        return {v: part + added[v] if v in added else part for v, part in found.items()}

    def _streams(self, forward: TracedForward, score: Value) -> list[Value]:
        """Returns the tokens that enter each layer."""
        streams = []
        for layer, inputs in zip(self.layers, forward.layers, strict=True):
            if len(inputs) != 1 or not score.descends_from(inputs[0].value):
                raise InvalidLayerError(
                    f"The layer {layer!r} gets {len(inputs)} tensors that the inputs reach, or the "
                    "score does not depend on it. Choose layers that take the tokens and return "
                    "them, such as blocks."
                )
            streams.append(inputs[0].value)
            if _passes_by(score, inputs[0].value, forward.values):
                raise InvalidLayerError(
                    f"The score also depends on the inputs past what enters the layer {layer!r}, "
                    "so its map would lack a part of the score. Choose layers that the whole "
                    "stream of tokens passes, such as blocks, and not what is inside them."
                )
        if len(set(streams)) < len(streams):
            raise InvalidLayerError("Two of the layers get the same tokens: give each once.")
        return streams

    def _of_biases(
        self, forward: TracedForward, selected: Tensor, streams: Sequence[Value]
    ) -> dict[Value, Tensor]:
        """Returns the relevance of biases at the outputs of operations after some layer."""
        found: dict[Value, Tensor] = {}
        operations = [
            operation
            for operation in forward.tape.operations
            if (output := operation.outputs[0]) is not None
            and operation.edge is not None
            and any(output.descends_from(value) for value in streams)
        ]
        edges = [operation.edge for operation in operations if operation.edge is not None]
        for operation, gradient in zip(operations, forward.gradients(selected, edges), strict=True):
            output = operation.outputs[0]
            if gradient is None or output is None:
                continue
            part = constant_part(operation, gradient.to(accumulation_dtype(gradient.dtype)))
            if part is not None and part[0] is Reason.BIAS:
                found[output] = part[1]
        return found


def _passes_by(score: Value, layer: Value, inputs: Sequence[Value]) -> bool:
    """Returns whether a path leads from the inputs to a score without passing a layer's value."""
    pending, seen = [score], {layer}
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        if value in inputs:
            return True
        seen.add(value)
        if value.operation is not None:
            pending += [source for _, source in value.operation.traced()]
    return False
