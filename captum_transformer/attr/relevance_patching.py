"""Jafari et al. (2025): relevance patching, activation patching by propagated coefficients."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_transformer.attr.gradient_times_input import Point, inner_points
from captum_transformer.attr.inner_relevance import require_samples_first
from captum_transformer.attr.patched_nodes import Node, require_alike
from captum_transformer.attr.reached import refuse_reached
from captum_transformer.attr.shown import progress_of
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.checkpointing import Checkpoint, layers_of_block
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.calling.layers import Layer, chosen_layers
from captum_transformer.calling.target import Target, target_of
from captum_transformer.errors import InvalidInputError
from captum_transformer.rules.gradient import libra
from captum_transformer.rules.gradient.tables import method
from captum_transformer.trace.forward import TracedForward, traced_forward
from captum_transformer.trace.picks import picked_rows
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.value import Value

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


class RelevancePatching:
    r"""How much a score would recover if part of the model had its activation on a clean input.

    Activation patching runs the model on a corrupted input once for each part (a layer's output, a
    head, at a position) with that part's activation :math:`a` taken from the clean run. Relevance
    patching (RelP) estimates the change of the score for all parts at once:

    .. math:: (a_\mathrm{clean} - a_\mathrm{corrupted}) \odot c, \qquad
              c = \partial f_c / \partial a \text{ at the corrupted input}

    where the gradient is changed so that nonlinear parts are held constant: the attention
    probabilities (AH), the denominators of norms (LN) and the slope :math:`f(x) / x` of activations
    (identity rule); each factor of a gate gets half. It costs two forward passes and one
    backward pass. With the plain gradient instead (``rules={}``), it is attribution patching.

    Choices that the model makes without a gradient, such as the expert for a token, are those made
    on the corrupted input: the estimate ignores that a patched layer might change them. To see
    that effect, patch the layer in a run of the model.

    Args:
        forward_func: the model or any callable that runs one.
        attention_rule: hold the attention probabilities constant. The paper's demonstration does
            not; then products of attention keep their gradient.
        rules: another table of rules for the gradient, joined by
            :func:`~captum_transformer.extend.joined`; an empty one for the plain gradient.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `RelP: Faithful and Efficient Circuit Discovery in Language Models via Relevance Patching
        <https://arxiv.org/abs/2508.21258>`_.

    Example:
        >>> import torch, transformers
        >>> from captum_transformer import Contrast, RelevancePatching
        >>> config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50)
        >>> model = transformers.GPT2LMHeadModel(config)
        >>> clean, corrupted = torch.tensor([[3, 14, 15]]), torch.tensor([[3, 9, 15]])
        >>> patching = RelevancePatching(model)
        >>> layers = [f"transformer.h.{i}.mlp" for i in range(2)]
        >>> target = Contrast((2, 26), (2, 41))  # the last token's logits of two words
        >>> mlps = patching.attribute(clean, corrupted, layers, target)
        >>> by_position = [scores.sum(-1) for scores in mlps]
        >>> by_position[0].shape
        torch.Size([1, 3])
        >>> heads = patching.attribute_heads(clean, corrupted, target)
        >>> heads[1].shape  # (samples, heads, positions)
        torch.Size([1, 2, 3])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        attention_rule: bool = True,
        rules: ForwardRules | None = None,
        checkpoint: Checkpoint = False,
    ) -> None:
        self.forward_func = forward_func
        self.checkpoint = checkpoint
        layers_of_block(checkpoint)
        chosen = libra(attention_rule=attention_rule)
        self.rules = chosen if rules is None else method(rules)

    def attribute(
        self,
        clean: Inputs,
        corrupted: Inputs,
        layers: Sequence[Layer],
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        attribute_to_layer_input: bool = False,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Tensor | tuple[Tensor, ...]]:
        """Estimates the change of the score if each entry of some layers' tensors is patched.

        Args:
            clean: the inputs whose activations are inserted, in any form of
                :meth:`TransformerMethod.attribute`.
            corrupted: the inputs on which the score is explained, of the same shapes.
            layers: modules of the model, or their dotted names: a block for the residual stream
                after it, its attention or its MLP for their outputs. If a module runs several
                times, a tuple of one of these and a number selects a call.
            target: which output, or a :class:`~captum_transformer.Contrast`, such as between the
                right answer and the wrong one.
            additional_forward_args: further arguments for the model, for both runs.
            attribute_to_layer_input: patch the layers' inputs instead of their outputs.
            additional_forward_kwargs: further arguments by name, for both runs.
            internal_batch_size: how many samples at a time.
            show_progress: show a progress bar with a step for each of these.

        Returns:
            For each layer, scores with the shape of its tensor: sum over the features for the score
            of a position, over all entries for the score of the layer. A tuple if the layer has
            several tensors that depend on the inputs.

        Raises:
            InvalidInputError: if the clean and the corrupted inputs, or a layer's outputs for
                them, differ in shape, or a layer gets different tokens, as experts do.
            InvalidLayerError: if a layer doesn't exist, does not run, or runs several times.
        """
        chosen = chosen_layers(self.forward_func, layers)
        arguments = [
            Arguments[Any](inputs, additional_forward_args, additional_forward_kwargs)
            for inputs in (clean, corrupted)
        ]

        def nodes(run: TracedForward, _: Value) -> list[list[Node]]:
            if len(run.inputs[0]) < arguments[0].samples:
                require_samples_first(run, chosen)
            rows = picked_rows(run.tape.operations)
            return [
                [
                    Node(layer.name, Point(t.value, t.operand.tensor, t.edge), rows.get(t.value))
                    for t in tensors
                ]
                for layer, tensors in zip(chosen, run.layers, strict=True)
            ]

        traced = partial(
            traced_forward,
            rules=self.rules,
            checkpoint=layers_of_block(self.checkpoint),
            layers=chosen,
            layer_inputs=attribute_to_layer_input,
        )
        found = self._scores(
            arguments, target, internal_batch_size, nodes, traced, show=show_progress
        )
        return [tensors if len(tensors) > 1 else tensors[0] for tensors in found]

    def attribute_heads(
        self,
        clean: Inputs,
        corrupted: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Tensor]:
        """Estimates the change of the score if each head is patched at each position.

        A head's output is patched before the output projection. The arguments are those of
        :meth:`attribute`.

        Returns:
            For each attention call that the score depends on, in the order in which they run,
            ``(samples, heads, queries)``.

        Raises:
            InvalidInputError: if the clean and the corrupted inputs differ in shape.
            NoAttentionError: if the score doesn't depend on attention.
        """

        def nodes(run: TracedForward, score: Value) -> list[list[Node]]:
            calls, rows = run.history(score).layers(), picked_rows(run.tape.operations)
            points = inner_points(run, [call.output for call in calls])
            return [
                [Node(call.module, point, rows.get(call.output), call)]
                for call, point in zip(calls, points, strict=True)
            ]

        arguments = [
            Arguments[Any](inputs, additional_forward_args, additional_forward_kwargs)
            for inputs in (clean, corrupted)
        ]
        block = layers_of_block(self.checkpoint)
        traced = partial(traced_forward, rules=self.rules, checkpoint=block)
        found = self._scores(
            arguments, target, internal_batch_size, nodes, traced, show=show_progress
        )
        return [of_call for (of_call,) in found]

    def _scores(
        self,
        arguments: Sequence[Arguments[Any]],
        target: Target,
        size: int | None,
        nodes: Callable[[TracedForward, Value], list[list[Node]]],
        traced: Callable[..., AbstractContextManager[TracedForward]],
        *,
        show: bool,
    ) -> list[tuple[Tensor, ...]]:
        """Returns difference times coefficient at each node of some groups."""
        clean, corrupted = arguments
        if len(clean.inputs) != len(corrupted.inputs):
            raise InvalidInputError(
                f"There are {len(clean.inputs)} clean inputs and {len(corrupted.inputs)} corrupted "
                "ones: give as many of both."
            )
        for name, one, other in zip(
            clean.names(self.forward_func), clean.inputs, corrupted.inputs, strict=True
        ):
            require_alike(f"The input {name!r}", one, other)
        parts = []
        run = partial(traced, self.forward_func)
        batches = zip(clean.batches(size), corrupted.batches(size), strict=True)
        with progress_of(self, clean.count(size), show=show) as step:
            for (rows, some_clean), (_, some_corrupted) in batches:
                chosen: Any = target_of(target, rows, clean.samples)
                parts.append(_differences(run, (some_clean, some_corrupted), chosen, nodes))
                step()
        return [
            tuple(map(torch.cat, zip(*of_group, strict=True)))
            for of_group in zip(*parts, strict=True)
        ]


def _differences(
    run: Callable[[Arguments[Any]], AbstractContextManager[TracedForward]],
    arguments: tuple[Arguments[Any], Arguments[Any]],
    target: Any,
    nodes: Callable[[TracedForward, Value], list[list[Node]]],
) -> list[tuple[Tensor, ...]]:
    """Returns the scores of some samples at each group of nodes."""
    clean, corrupted = arguments
    with run(clean) as forward:
        _, score = forward.select(target)
        known = [[node.clean() for node in group] for group in nodes(forward, score)]
    with run(corrupted) as forward:
        selected, score = forward.select(target)
        refuse_reached(forward, selected, score)
        groups = nodes(forward, score)
        counts = [[len(group) for group in of_run] for of_run in (known, groups)]
        if counts[0] != counts[1]:
            raise InvalidInputError(
                f"The clean run has {counts[0]} tensors in the layers, or attention calls "
                f"that the score depends on, the corrupted one {counts[1]}: they can't be "
                "paired."
            )
        edges = [n.point.edge for g in groups for n in g if n.point.edge is not None]
        slopes = iter(forward.gradients(selected, edges))
        with in_full_precision(forward.inputs[0].device):
            return [
                tuple(node.score(c, next(slopes)) for node, c in zip(*of, strict=True))
                for of in zip(groups, known, strict=True)
            ]
