"""Abnar & Zuidema (ACL 2020): attention rollout."""

from collections.abc import Callable, Sequence
from typing import Any

from captum_transformer.attr.rollout_method import Propagation, RolloutMethod
from captum_transformer.attr.selection import Selection
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.streams.update import RolloutUpdate
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward


class AttentionRollout(RolloutMethod):
    r"""Attention maps with the residual connections, multiplied over the layers.

    .. math:: \hat A = \mathrm{rownorm}(I + E_h[A]), \qquad
              \hat A^{(L)} \cdots \hat A^{(s)}

    The result is the row that the target is read from, without paths that pass no attention: for
    input tokens that the target is read from, the remaining part of themselves. The maps are the
    same for all classes, so ``target`` only matters if outputs are read from different tokens,
    and may be left out for a model that returns a tensor.

    If there is cross-attention, the last call connects the streams, as in the ICCV 2021 code:
    :math:`R_{qk} = R_{qq}^\top E_h[A] R_{kk}` with the rollouts of both streams up to there.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: attention calls before this one contribute nothing; negative counts from
            the last. In a model with several towers, each has its own count.
        normalize_rows: divide each row of :math:`I + E_h[A]` by its sum, as the paper does.
        propagation: what to do if there is cross-attention: ``"paper"`` is the rule above,
            ``"flow"`` the token flow through all calls.
        with_identity: also count paths without attention, as the paper does.
        checkpoint: as in :class:`TransformerMethod`.

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
        propagation: Propagation = "paper",
        with_identity: bool = False,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(
            forward_func,
            start_layer=start_layer,
            normalize_rows=normalize_rows,
            propagation=propagation,
            with_identity=with_identity,
            checkpoint=checkpoint,
        )

    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:  # noqa: ARG002
        return lambda call, rows: call.probabilities(rows)

    def _update_rule(self) -> RolloutUpdate:
        return RolloutUpdate(normalize_rows=self.normalize_rows)

    def _check_causal(self, forward: TracedForward) -> None:
        scores = forward.tape.find(forward.output)
        if scores is None or self.propagation == "flow":
            return
        if forward.history(scores).streams.cross_attention:
            raise UnsupportedOperationError(
                "The rule for cross-attention also sums over later tokens, so it can't explain "
                "generated tokens one by one. "
                "Use `AttentionRollout(model, propagation='flow')`."
            )
