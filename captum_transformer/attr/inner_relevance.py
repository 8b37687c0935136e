"""Relevance inside a model: at the tensors of its layers, and of the heads of its attention."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_transformer.attr.shown import progress_of
from captum_transformer.calling.arguments import Arguments, Inputs
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.calling.layers import ChosenLayer, Layer, chosen_layers
from captum_transformer.calling.target import Target, target_of
from captum_transformer.errors import InvalidLayerError, UnsupportedOperationError
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.heads import by_head
from captum_transformer.trace.value import Value


class InnerRelevance(ABC):
    """The base class of methods that can explain values inside a model."""

    forward_func: Any
    # A method that adds up layers has no relevance of a single layer or head.
    adds_up_layers: ClassVar[bool] = False

    def attribute_layers(
        self,
        inputs: Inputs,
        layers: Sequence[Layer],
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        attribute_to_layer_input: bool = False,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Tensor | tuple[Tensor, ...]]:
        """Attributes the target's score to the outputs of layers inside the model.

        All layers are explained in one forward pass and one backward pass, as in
        :meth:`attribute`. A layer's relevance is what the method would attribute to the
        tensor if it were an input of the rest of the model: all uses of it in the model count,
        including a skip connection around the next layer. Methods that pass relevance from token
        to token spread a token's relevance evenly over its features.

        Args:
            inputs: as in :meth:`attribute`.
            layers: modules of the model, or their dotted names. If a module runs several
                times, a tuple of one of these and a number selects a call.
            target: as in :meth:`attribute`.
            additional_forward_args: as in :meth:`attribute`.
            attribute_to_layer_input: attribute to the layers' inputs, as in Captum.
            additional_forward_kwargs: as in :meth:`attribute`.
            internal_batch_size: as in :meth:`attribute`.
            show_progress: as in :meth:`attribute`.

        Returns:
            For each layer the relevance of its output, with the same shape; a tuple if it returns
            several tensors that depend on the inputs. Zero if the score does not depend on one of
            them.

        Raises:
            InvalidLayerError: if a layer doesn't exist, does not run, or runs several times,
                or if the score does not depend on it.
            UnsupportedOperationError: if the method defines no relevance for the tensor, as after
                the last attention call.

        Example:
            >>> import timm, torch
            >>> from captum_transformer import AttnLRP
            >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
            >>> layers = ["patch_embed", model.blocks[0], "blocks.1.mlp.act"]
            >>> found = AttnLRP(model).attribute_layers(torch.rand(1, 3, 32, 32), layers, target=3)
            >>> [tuple(relevance.shape) for relevance in found]
            [(1, 4, 192), (1, 5, 192), (1, 5, 768)]
        """
        self._require_single_layers()
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        chosen = chosen_layers(self.forward_func, layers)
        parts: list[list[tuple[Tensor, ...]]] = []
        steps = arguments.count(internal_batch_size)
        traced = partial(self._traced, layers=chosen, layer_inputs=attribute_to_layer_input)
        with progress_of(self, steps, show=show_progress) as step:
            for rows, batch in arguments.batches(internal_batch_size):
                some = target_of(target, rows, arguments.samples)
                with traced(batch) as run:
                    if batch is not arguments and not parts:
                        require_samples_first(run, chosen)
                    parts.append(self._attribute_layers(run, some, chosen))
                step()
        found = [
            tuple(map(torch.cat, zip(*of_layer, strict=True)))
            for of_layer in zip(*parts, strict=True)
        ]
        return [tensors if len(tensors) > 1 else tensors[0] for tensors in found]

    def attribute_heads(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Tensor]:
        """Attributes the target's score to the heads of all attention calls that it depends on.

        The arguments are those of :meth:`attribute`. A head's relevance is the relevance of its
        output, before the output projection, summed over its features. Methods that pass relevance
        from token to token by attention maps give each head the part that its map passes on.

        Returns:
            For each attention call, in the order in which they run, ``(samples, heads, queries)``;
            for attention within windows ``(windows, heads, queries)``.

        Raises:
            NoAttentionError: if the score doesn't depend on attention.
            UnsupportedOperationError: if the heads of a call can't be separated.

        Example:
            >>> import timm, torch
            >>> from captum_transformer import AttnLRP
            >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
            >>> heads = AttnLRP(model).attribute_heads(torch.rand(1, 3, 32, 32), target=3)
            >>> [tuple(relevance.shape) for relevance in heads]
            [(1, 3, 5), (1, 3, 5)]
        """
        self._require_single_layers()
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        parts = []
        steps = arguments.count(internal_batch_size)
        with progress_of(self, steps, show=show_progress) as step:
            for rows, batch in arguments.batches(internal_batch_size):
                some = target_of(target, rows, arguments.samples)
                with self._traced(batch) as forward, in_full_precision(forward.inputs[0].device):
                    scores, score = self._select(forward, some)
                    calls = forward.history(score).layers()
                    heads = self._heads(forward, some, calls)
                    parts.append([heads[call].to(scores.dtype).detach() for call in calls])
                step()
        return [torch.cat(of_call) for of_call in zip(*parts, strict=True)]

    def _require_single_layers(self) -> None:
        if self.adds_up_layers:
            raise UnsupportedOperationError(
                f"{type(self).__name__} sums over several layers, so a single layer or head has "
                f"no relevance. Use LibraGrad, AttnLRP or "
                "GenericAttentionRelevance."
            )

    def _attribute_layers(
        self, forward: TracedForward, target: Any, layers: Sequence[ChosenLayer]
    ) -> list[tuple[Tensor, ...]]:
        scores, score = self._select(forward, target)
        behind: list[Value] = []
        for layer, tensors in zip(layers, forward.layers, strict=True):
            found = [t.value for t in tensors if score is t.value or score.descends_from(t.value)]
            if not found:
                raise InvalidLayerError(f"The score does not depend on the layer {layer.name!r}.")
            behind += found
        wanted = list(dict.fromkeys(behind))
        with in_full_precision(forward.inputs[0].device):
            relevance = self._relevance_within(forward, target, wanted)
        return [
            tuple(
                _like(relevance[value], value, operand.dtype, scores)
                if value in relevance
                else torch.zeros(value.shape, dtype=operand.dtype, device=value.device)
                for value, operand, _ in tensors
            )
            for tensors in forward.layers
        ]

    def _relevance_within(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        """Returns the relevance of values inside the model."""
        return self._relevance(forward, target, wanted)

    def _heads(
        self, forward: TracedForward, target: Any, calls: Sequence[AttentionCall]
    ) -> dict[AttentionCall, Tensor]:
        """Returns the relevance of each head: ``(sets of tokens, heads, queries)``."""
        relevance = self._relevance(forward, target, [call.output for call in calls])
        return {call: by_head(call, call.outputs(relevance[call.output])).sum(-1) for call in calls}

    @abstractmethod
    def _traced(
        self,
        arguments: Arguments[Any],
        *,
        layers: Sequence[ChosenLayer] = (),
        layer_inputs: bool = False,
    ) -> AbstractContextManager[TracedForward]:
        """Returns a context that runs the model's forward pass under the trace."""

    @abstractmethod
    def _select(self, forward: TracedForward, target: Any) -> tuple[Tensor, Value]:
        """Returns the scores that are explained, and their value on the tape."""

    @abstractmethod
    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        """Returns the relevance of the target's score at some values of the forward pass."""


def require_samples_first(forward: TracedForward, layers: Sequence[ChosenLayer]) -> None:
    """Raises an error unless results of several batches can be joined in the first dimension."""
    for layer, tensors in zip(layers, forward.layers, strict=True):
        for value, _, _ in tensors:
            samples = value.samples
            # The dimension of a single sample can only be recognised by its size.
            alone = samples is not None and samples.size == 1 and value.shape[:1].numel() != 1
            if samples is None or samples.outer != 1 or alone:
                raise UnsupportedOperationError(
                    f"The layer {layer.name!r} has a tensor of shape {tuple(value.shape)}, whose "
                    f"first dimension is not {'known to be ' * alone}that of the samples, so the "
                    "results of several batches can't be joined. Leave `internal_batch_size` out"
                    f"{', or make it 2' * alone}."
                )


def _like(relevance: Tensor, value: Value, dtype: torch.dtype, scores: Tensor) -> Tensor:
    """Converts relevance to the layer's own precision; it is NaN if the sample's score is NaN."""
    unknown, samples = scores.detach().isnan(), value.samples
    where = unknown.any() if samples is None else samples.spread(unknown, value.shape)
    return relevance.detach().to(dtype).masked_fill(where, torch.nan).contiguous()


def like_input(relevance: Tensor, tensor: Tensor, scores: Tensor) -> Tensor:
    """Converts relevance to the input's precision, except for ids, and makes it contiguous.

    It is NaN for samples whose score is NaN.
    """
    dtype = tensor.dtype if tensor.is_floating_point() else relevance.dtype
    by_sample = relevance.detach().to(dtype).reshape(len(scores), -1)
    unknown = scores.detach().isnan().unsqueeze(1)
    return by_sample.masked_fill(unknown, torch.nan).reshape(relevance.shape).contiguous()
