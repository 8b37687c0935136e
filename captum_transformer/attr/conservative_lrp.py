"""Ali et al. (ICML 2022): XAI for Transformers, through conservative propagation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from captum_transformer.attr.gradient_times_input import GradientTimesInput
from captum_transformer.attr.logged import logged
from captum_transformer.attr.positional_method import Positions
from captum_transformer.calling.arguments import Arguments, Inputs
from captum_transformer.calling.checkpointing import Checkpoint, layers_of_block
from captum_transformer.calling.target import Target
from captum_transformer.errors import InvalidInputError
from captum_transformer.rules.gradient import Gamma, conservative_lrp
from captum_transformer.trace.forward import TracedForward, traced_forward
from captum_transformer.trace.history import History
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.tokens import projections_of


class ConservativeLRP(GradientTimesInput):
    r"""Gradient x input with attention and normalisation held constant: LRP-AH and LRP-LN.

    The relevance of the inputs is :math:`R_i = x_i \cdot \partial f_c / \partial x_i`, where the
    gradient takes as constants

    - with the AH rule (eq. 11 of the paper) the attention probabilities, so that attention is a
      linear map of the values;
    - with the LN rule (eq. 12) the divisor of a norm, fused or written in Python, over
      features, channels, windows or samples. A divisor that is an elementwise function of the
      signal itself, as in ``x / (1 + exp(-x))``, belongs to an activation and keeps its gradient.

    Then relevance is conserved, except for biases and saturating activations. Without both rules it
    is plain gradient x input. It costs one forward and one backward pass; with ``gamma``
    two forward passes, the first to find the attention blocks' linear layers.

    Args:
        forward_func: the model or any callable that runs one.
        attention_rule: hold the attention probabilities constant (AH).
        layer_norm_rule: hold the norms' denominators constant (LN).
        hold_mean: with the LN rule, also hold the subtracted mean constant: a variant in the
            authors' code, but not in the paper.
        gamma: LRP-gamma in the linear layers of the attention blocks (query, key, value and output
            projection): positive weights count :math:`1 + \gamma` times. One number, or one per
            attention layer.
        gamma_keeps_output: with ``gamma``, let the output projection return the same value as
            without it, as the rule intends. In the authors' code, and by default, it returns the
            changed value, so the explained score changes a little.
        positions: as in :class:`AttnLRP`; rotary angles get zero if queries and keys are held
            constant.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `XAI for Transformers: Better Explanations through Conservative Propagation
        <https://arxiv.org/abs/2202.07304>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> method = ConservativeLRP(model)
        >>> relevance, delta = method.attribute(images, target=3, return_convergence_delta=True)
        >>> relevance.shape, delta.shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        attention_rule: bool = True,
        layer_norm_rule: bool = True,
        hold_mean: bool = False,
        gamma: float | Sequence[float] = 0.0,
        gamma_keeps_output: bool = False,
        positions: Positions = "ignore",
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, positions=positions, checkpoint=checkpoint)
        self.attention_rule = attention_rule
        self.layer_norm_rule = layer_norm_rule
        self.hold_mean = hold_mean
        self.gamma = gamma
        self.gamma_keeps_output = gamma_keeps_output

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[False] = False,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs: ...

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[True],
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> tuple[Inputs, Tensor]: ...

    @logged
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: bool = False,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs | tuple[Inputs, Tensor]:
        """Attributes the target's score to the inputs.

        Args:
            inputs: a tensor, a tuple of tensors or a mapping of names to tensors, samples first:
                pixels, embeddings, token ids.
            target: which output to explain, in any of Captum's forms, or a ``Contrast``.
            additional_forward_args: further arguments for the model by position, as in Captum.
            return_convergence_delta: also return the deviation from conservation.
            additional_forward_kwargs: further arguments for the model by name.
            internal_batch_size: how many samples to explain at a time; None for all at once.
            show_progress: show a progress bar with a step for each of these.

        Returns:
            As ``inputs``, each of its input's shape; token ids get the relevance of their
            embeddings, summed over the features, ``(samples, tokens)``. With
            ``return_convergence_delta`` a tuple of that and the delta ``(samples,)``: the sum of
            relevance minus the score.

        Raises:
            NoAttentionError: if ``attention_rule`` is on and no attention is found.
            InvalidTargetError: if the target does not fit the output.
            UnsupportedOperationError: if relevance reaches an unknown operation.
        """
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        explain = self._attribute_inputs
        if return_convergence_delta:
            explain = self._attribute_inputs_with_score
        (maps,) = self._in_batches(
            arguments, [target], explain, internal_batch_size, show=show_progress
        )
        if not return_convergence_delta:
            return arguments.restored(maps)
        *maps_of_inputs, score = maps
        attributions = arguments.restored(maps_of_inputs)
        return attributions, self.compute_convergence_delta(attributions, score)

    def _attribute_inputs_with_score(
        self, forward: TracedForward, target: Any
    ) -> tuple[Tensor, ...]:
        score, _ = forward.select(target)
        return (*self._attribute_inputs(forward, target), score.detach())

    def has_convergence_delta(self) -> bool:
        """Returns True: the relevance should sum up to the score."""
        return True

    @logged
    def compute_convergence_delta(
        self,
        attributions: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
        output: Tensor,
    ) -> Tensor:
        """Returns the deviation from conservation: the sum of relevance minus the score.

        Args:
            attributions: the result of :meth:`attribute`.
            output: the explained score of each sample: ``(samples,)``.

        Returns:
            The differences: ``(samples,)``.
        """
        maps = Arguments[Any](attributions).inputs
        if output.ndim != 1 or any(len(m) != len(output) for m in maps):
            raise InvalidInputError(
                f"`output` must hold one score for each of the {len(maps[0])} samples, got shape "
                f"{tuple(output.shape)}."
            )
        dtype = accumulation_dtype(output.dtype)
        total = sum(m.to(dtype).flatten(1).sum(1) for m in maps)
        return torch.as_tensor(total - output.to(dtype))

    def _require_attention(self, history: History) -> None:
        if self.attention_rule:
            history.require_attention(weights=True)

    def _forward_rules(self, arguments: Arguments[Any]) -> ForwardRules:
        rules = self._rules({})
        gammas = [self.gamma] if isinstance(self.gamma, (int, float)) else list(self.gamma)
        if not any(gammas):
            return rules
        with traced_forward(
            self.forward_func,
            arguments,
            keep=self._keep,
            rules=rules,
            checkpoint=layers_of_block(self.checkpoint),
        ) as forward:
            return self._rules(self._gammas(forward, gammas))

    def _rules(self, gammas: Mapping[int, Gamma]) -> ForwardRules:
        return conservative_lrp(
            attention_rule=self.attention_rule,
            layer_norm_rule=self.layer_norm_rule,
            hold_mean=self.hold_mean,
            gammas=gammas,
        )

    def _gammas(self, forward: TracedForward, gammas: list[float]) -> dict[int, Gamma]:
        calls = forward.whole.layers()
        for call in calls:
            forward.whole.warn_of_rounding(call.output.dtype)
        if len(gammas) not in (1, len(calls)):
            raise InvalidInputError(
                f"gamma has {len(gammas)} values, the model {len(calls)} attention layers: give "
                "one number, or one per layer."
            )
        rules: dict[int, Gamma] = {}
        for call, gamma in zip(calls, gammas * (len(calls) // len(gammas)), strict=True):
            into, out_of = projections_of(call, forward.tape)
            rules |= {operation.index: Gamma(gamma, keeps_output=True) for operation in into}
            for operation in out_of:
                rules[operation.index] = Gamma(gamma, keeps_output=self.gamma_keeps_output)
        return rules
