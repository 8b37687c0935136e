"""Bakish et al. (NeurIPS 2025): the relevance of positions, PA-LRP."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from captum_transformer.attr.accounting import AccountableMethod
from captum_transformer.attr.inner_relevance import like_input
from captum_transformer.attr.logged import logged
from captum_transformer.attr.reached import refuse_reached
from captum_transformer.calling.arguments import Arguments, Inputs
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.calling.target import Target
from captum_transformer.errors import InvalidInputError
from captum_transformer.rules.gradient.positions import (
    POSITIONS,
    of_positions,
    share_of_positions,
)
from captum_transformer.rules.gradient.tables import joined
from captum_transformer.rules.streams.own_tokens import at_own_tokens
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.tokens import per_token, token_value
from captum_transformer.trace.value import Value

# How the relevance of positions is treated: left out, kept separate, or added to the tokens'.
Positions = Literal["ignore", "separate", "add"]


class PositionalMethod(AccountableMethod):
    """A method of modified gradients that can also return the relevance of tokens' positions.

    Args:
        forward_func: the model or any callable that runs one.
        positions: how the relevance of positions is treated: ``"ignore"`` leaves it out;
            ``"separate"`` leaves it to :meth:`attribute_positions`, including the part of rotary
            angles; ``"add"`` adds it to the tokens' relevance.
        checkpoint: as in :class:`TransformerMethod`.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        positions: Positions = "ignore",
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, checkpoint=checkpoint)
        if positions not in get_args(Positions):
            raise InvalidInputError(
                f"`positions` must be one of {list(get_args(Positions))}, got {positions!r}."
            )
        self.positions = positions
        if positions != "ignore":
            self._keep = self._keep | POSITIONS.keys()
            self._all_edges = True

    @logged
    def attribute_positions(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs:
        r"""Attributes the target's score to the positions of the inputs' tokens (PA-LRP).

        A position embedding :math:`p` that is added to a token gets :math:`p \cdot \partial f_c /
        \partial p`, like everything else that is added to tokens and isn't a bias, such as the
        type of a token. In rotary embeddings, angles and token get half each (the uniform rule).

        The method must be created with ``positions="separate"``, whose other attributions leave
        positions out, or with ``positions="add"``, where they are included. The arguments are those
        of :meth:`attribute`.

        Returns:
            The relevance of positions ``(samples, tokens)`` for each input.

        Raises:
            InvalidInputError: if the method ignores positions.

        Reference:
            `Revisiting LRP: Positional Attribution as the Missing Ingredient for Transformer
            Explainability <https://arxiv.org/abs/2506.02138>`_.

        Example:
            >>> import timm, torch
            >>> from captum_transformer import AttnLRP
            >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
            >>> method = AttnLRP(model, positions="separate")
            >>> method.attribute_positions(torch.rand(2, 3, 32, 32), target=3).shape
            torch.Size([2, 4])
        """
        if self.positions == "ignore":
            raise InvalidInputError(
                "This method ignores positions. Make it with `positions='separate'`."
            )
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        (maps,) = self._in_batches(
            arguments, [target], self._attribute_positions, internal_batch_size, show=show_progress
        )
        return arguments.restored(maps)

    def _all_rules(self, arguments: Arguments[Any]) -> ForwardRules | None:
        rules = self._forward_rules(arguments)
        return rules if self.positions == "ignore" else joined(POSITIONS, rules or {})

    def _attribute_positions(self, forward: TracedForward, target: Any) -> tuple[Tensor, ...]:
        selected, score = forward.select(target)
        refuse_reached(forward, selected, score)
        tokens = [token_value(value, forward.history(score)) for value in forward.values]
        with in_full_precision(forward.inputs[0].device):
            found = self._of_positions(forward, selected, score, tokens)
        return tuple(
            like_input(per_token(found[value], value), tensor, selected)
            for value, tensor in zip(tokens, forward.inputs, strict=True)
        )

    def _of_positions(
        self, forward: TracedForward, selected: Tensor, score: Value, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        """Returns the relevance of positions at some values' tokens, spread over features."""
        history = forward.history(score)
        operations = of_positions(history.operations, history.calls)
        edges = [operation.edge for operation in operations if operation.edge is not None]
        seeds: dict[Value, Tensor] = {}
        for operation, gradient in zip(operations, forward.gradients(selected, edges), strict=True):
            output = operation.outputs[0]
            if gradient is not None and output is not None:
                slope = gradient.to(accumulation_dtype(gradient.dtype))
                share = share_of_positions(operation, slope)
                seeds |= {} if share is None else {output: share}
        nothing = {value: selected.new_zeros(value.shape) for value in wanted}
        # Positions of learned tokens, such as latents, are none of the inputs' tokens.
        return nothing | at_own_tokens(forward.tape, seeds, wanted, history.calls, whole=False)
