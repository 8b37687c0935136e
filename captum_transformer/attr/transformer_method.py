"""The base class of all methods: Captum's calling conventions around a traced forward pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from captum.attr._utils.attribution import GradientAttribution
from torch import Tensor

from captum_transformer.attr.generated_relevance import GeneratedRelevance
from captum_transformer.attr.inner_relevance import InnerRelevance, like_input
from captum_transformer.attr.logged import logged
from captum_transformer.attr.shown import progress_of
from captum_transformer.calling.arguments import Arguments, Inputs
from captum_transformer.calling.checkpointing import Checkpoint, layers_of_block
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.calling.layers import ChosenLayer
from captum_transformer.calling.target import Target, target_of
from captum_transformer.captured.call import Captured, Of
from captum_transformer.rules import flow
from captum_transformer.trace.forward import TracedForward, traced_forward
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.tokens import per_token, token_value
from captum_transformer.trace.value import Value

# Relevance and flow are linear, so they may start large; products with denormals are slow on CPUs.
START = 2.0**40


class TransformerMethod(InnerRelevance, GeneratedRelevance, GradientAttribution):
    """An attribution method for Transformers.

    The model runs once, unmodified, under a trace; the method then propagates relevance or a
    gradient backward along it. The model, the inputs and the random state are left unchanged.

    Args:
        forward_func: the model (an ``nn.Module``) or any callable that runs one, as in Captum.
        checkpoint: run the model again in the backward pass, block by block, so that the forward
            pass only keeps what each block reads. A block contains one attention call, like a
            Transformer's layer, or as many as the given number. The result
            is the same to the last bit.
    """

    # The kinds of operation whose operands the method's rules read.
    _keep: frozenset[Kind] = flow.KEEP
    # Further kinds that its account reads, along with the autograd edges of all operations.
    _kept_for_account: frozenset[Kind] = frozenset()
    _all_edges = False
    checkpoint: Checkpoint = False

    def __init__(self, forward_func: Callable[..., Any], *, checkpoint: Checkpoint = False) -> None:
        super().__init__(forward_func)
        self.checkpoint = checkpoint
        layers_of_block(checkpoint)

    @logged
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs:
        """Attributes the target's score to the inputs.

        Args:
            inputs: pixels, embeddings, token ids, samples first: a tensor or a tuple of tensors,
                passed by position, or a mapping such as ``{"input_ids": ids,
                "pixel_values": pixels}``, passed by name. In the output of a tokenizer or a
                processor of Transformers, token ids and floating point values are
                explained, and masks, types and positions are further arguments.
            target: which output to explain, in any of Captum's forms: an ``int`` or a tuple of
                indices for all samples, a tensor ``(samples,)`` or a list with one for each
                sample; None if the model returns one score per sample. Or a
                :class:`~captum_transformer.Contrast` of two such targets.
            additional_forward_args: further arguments for the model by position, as in Captum;
                they get no attribution.
            additional_forward_kwargs: further arguments for the model by name, such as
                ``{"attention_mask": mask}``. Captum's tools that repeat the samples
                (``NoiseTunnel``, ``sensitivity_max``) don't repeat these.
            internal_batch_size: how many samples to explain at a time, if all together don't fit
                into memory; the result is the same. Targets and further arguments with one row
                for each sample are divided in the same way.
            show_progress: show a progress bar, with a step for each of these batches and targets.

        Returns:
            As ``inputs``: a tensor, a tuple or a dict, each of its input's shape. Token ids get
            floating point relevance ``(samples, tokens)``.

        Raises:
            NoAttentionError: if no attention is found in the forward pass.
            InvalidInputError: if the inputs can't be explained in this form.
            InvalidTargetError: if the target does not fit the output.
            UnsupportedOperationError: if an operation has no rule in this method.
            UnseenOperationError: if the score depends on the inputs through an operation that can't
                be traced.
        """
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        (maps,) = self._in_batches(
            arguments, [target], self._attribute_inputs, internal_batch_size, show=show_progress
        )
        return arguments.restored(maps)

    @logged
    def attribute_tokens(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs:
        """Attributes the target's score to the tokens that the model makes from the inputs.

        Learned tokens, such as a ViT's class token, aren't inputs and are left out; a ``[CLS]``
        among the input ids is included.

        The arguments are those of :meth:`attribute`.

        Returns:
            Token relevance ``(samples, tokens)`` for each input; the patches of an image in
            row-major order.

        Raises:
            UnsupportedOperationError: if an input doesn't become tokens.
        """
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        (maps,) = self._in_batches(
            arguments, [target], self._attribute_tokens, internal_batch_size, show=show_progress
        )
        return arguments.restored(maps)

    @logged
    def attribute_targets(
        self,
        inputs: Inputs,
        targets: Sequence[Target],
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Inputs]:
        """Attributes several targets' scores; the model runs only once.

        ``targets`` is a list of targets as in :meth:`attribute`; the other arguments are
        the same.

        Returns:
            One result of :meth:`attribute` for each target.
        """
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        of_targets = self._in_batches(
            arguments, targets, self._attribute_inputs, internal_batch_size, show=show_progress
        )
        return [arguments.restored(maps) for maps in of_targets]

    def capture(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        of: Of = "attribute",
        recapture: bool = False,
        **options: Any,
    ) -> Captured:
        """Captures a call as one graph of tensor operations, to repeat it on other inputs.

        The Python code of the trace and the rules runs once. The captured call takes the method's
        arguments, with inputs of the same shapes and any target of the same form, and gives the
        same results to the last bit as with one target for each sample. It reads the model's own
        parameters and buffers, so it follows training. Anything else that a forward pass reads
        must stay the same.

        Args:
            inputs: as in :meth:`attribute`; an example.
            target: as in :meth:`attribute`; for `attribute_targets`, a list of targets.
            additional_forward_args: as in :meth:`attribute`.
            additional_forward_kwargs: as in :meth:`attribute`.
            of: which of the methods' calls is captured.
            recapture: capture again whenever a call differs or the model has changed, instead of
                refusing it.
            **options: further arguments of the captured method.

        Returns:
            The captured call.

        Raises:
            CaptureError: if the call can't be captured, for example because Python code depends on
                the values of the inputs.
        """
        captured = Captured(self, of, options, recapture=recapture)
        captured.add(inputs, target, additional_forward_args, additional_forward_kwargs)
        return captured

    def _in_batches(
        self,
        arguments: Arguments[Any],
        targets: Sequence[Any],
        explain: Callable[[TracedForward, Any], tuple[Tensor, ...]],
        size: int | None,
        *,
        show: bool,
    ) -> list[tuple[Tensor, ...]]:
        """Explains each target, a few samples at a time."""
        parts: list[list[tuple[Tensor, ...]]] = []
        steps = arguments.count(size) * len(targets)
        with progress_of(self, steps, show=show) as step:
            for rows, batch in arguments.batches(size):
                chosen = [target_of(target, rows, arguments.samples) for target in targets]
                parts.append([])
                with self._traced(batch) as forward:
                    if len(chosen) > 1:
                        forward.keep_for_all_targets()
                    for target in chosen:
                        parts[-1].append(explain(forward, target))
                        step()
        if len(parts) == 1:
            return parts[0]
        of_targets = zip(*parts, strict=True)
        return [tuple(map(torch.cat, zip(*maps, strict=True))) for maps in of_targets]

    def _traced(
        self,
        arguments: Arguments[Any],
        *,
        account: bool = False,
        layers: Sequence[ChosenLayer] = (),
        layer_inputs: bool = False,
    ) -> AbstractContextManager[TracedForward]:
        further = self._kept_for_account if account else frozenset()
        return traced_forward(
            self.forward_func,
            arguments,
            keep=self._keep | further,
            rules=self._all_rules(arguments),
            all_edges=self._all_edges or bool(further),
            layers=layers,
            layer_inputs=layer_inputs,
            checkpoint=layers_of_block(self.checkpoint),
        )

    def _all_rules(self, arguments: Arguments[Any]) -> ForwardRules | None:
        """Returns the method's rules, and those that options add to them."""
        return self._forward_rules(arguments)

    def _forward_rules(
        self,
        arguments: Arguments[Any],  # noqa: ARG002 - for methods that look at the model first
    ) -> ForwardRules | None:
        """Returns the rules that change the gradient of operations, or None if there are none."""
        return None

    def _check_causal(self, forward: TracedForward) -> None:
        """Raises an error if the relevance of a score depends on later tokens."""

    def _attribute_inputs(self, forward: TracedForward, target: Any) -> tuple[Tensor, ...]:
        with in_full_precision(forward.inputs[0].device):
            relevance = self._relevance(forward, target, forward.values)
        return tuple(
            like_input(relevance[value], tensor, self._select(forward, target)[0])
            for value, tensor in zip(forward.values, forward.inputs, strict=True)
        )

    def _attribute_tokens(self, forward: TracedForward, target: Any) -> tuple[Tensor, ...]:
        scores, score = self._select(forward, target)
        tokens = [token_value(value, forward.history(score)) for value in forward.values]
        with in_full_precision(forward.inputs[0].device):
            relevance = self._relevance(forward, target, tokens)
        return tuple(
            like_input(per_token(relevance[value], value), tensor, scores)
            for value, tensor in zip(tokens, forward.inputs, strict=True)
        )

    def _select(self, forward: TracedForward, target: Any) -> tuple[Tensor, Value]:
        """Returns the scores that are explained, and their value on the tape."""
        return forward.select(target)


def seed(
    forward: TracedForward, selected: Tensor, value: Value, *, start: float = 1.0
) -> dict[Value, Tensor]:
    """Returns the start value for each sample's score, times the weights if the score is a sum."""
    dtype = accumulation_dtype(selected.dtype)
    if (combined := forward.combined(value)) is not None:
        return {combined.value: combined.combination.shares.to(dtype) * start}
    return {value: torch.full_like(selected.detach(), start, dtype=dtype)}


def scaled_back(relevance: dict[Value, Tensor]) -> dict[Value, Tensor]:
    """Undoes the large start value of a linear pass; nearly denormal values become zero."""
    result = {}
    for value, tensor in relevance.items():
        scaled = tensor / START
        vanishing = scaled.abs() < torch.finfo(scaled.dtype).tiny * START
        result[value] = scaled.masked_fill(vanishing, 0.0)
    return result
