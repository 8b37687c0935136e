"""Chefer, Gur & Wolf (CVPR 2021): Transformer interpretability beyond attention visualization."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_transformer.account import Account
from captum_transformer.attr.propagated import propagated_relevance, relevance_account
from captum_transformer.attr.relevance_map import relevance_map
from captum_transformer.attr.rollout_method import Propagation, RolloutMethod
from captum_transformer.attr.selection import Selection
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.streams.update import RelevanceUpdate
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.value import Value


class TransformerAttribution(RolloutMethod):
    r"""Relevance times gradient of the attention, rolled out over the layers.

    Relevance is propagated from the target by layer-wise relevance propagation (alpha = 1,
    beta = 0 in linear layers, normalised additions: eq. 9-10). With the relevance
    :math:`R^{(A)}` and the gradient :math:`\nabla A` that reach the attention probabilities of a
    layer, and :math:`h` its heads (eq. 13 and 14 of the paper):

    .. math:: \bar A = I + E_h\big[(\nabla A \odot R^{(A)})^+\big], \qquad
              C = \bar A^{(L)} \cdots \bar A^{(s)}

    and the relevance of the input tokens is the row of :math:`C - I` that the target is read from.
    If there is cross-attention, :math:`\bar A - I` replaces the attention map in the
    rules of :class:`GenericAttentionRelevance`, as in the variant with relevance of the authors'
    code for encoder-decoder models.

    Where the authors' code differs from the paper, this follows the code: relevance starts at
    one, not at the logit; softmax, norms and activations pass it on unchanged; products of two
    signals give half to each; for ViTs the rows of :math:`\bar A` are not normalised, for BERT
    they are (``normalize_rows=True``). The normalisation of additions runs over each sample, so a
    batch gives the same results as its samples one by one. The authors overwrite the entry of
    ``[CLS]`` in text models; here it has the relevance from attention, without the :math:`I`.

    :meth:`account` describes the relevance propagation down to the inputs, not the rollout.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: attention calls before this one contribute nothing (the :math:`s` above);
            negative counts from the last: the BERT code's default is -1. In a model with several
            towers, each has its own count.
        normalize_rows: divide each row of :math:`\bar A` by its sum, as the BERT code does.
        gradient_weighting: multiply by the gradient; without it this is the rollout of the
            attention's relevance alone, which is not class-specific.
        propagation: what to do if there is cross-attention: ``"paper"`` follows the matrix
            rules, ``"flow"`` the token flow. Without cross-attention they are equal.
        normalize: normalise self-relevance in cross-attention.
        with_identity: also count paths without attention: the paper's row of :math:`C`, in which
            each token that the target is read from has an additional constant.
        pooled_evidence: if the target is read from several tokens that are pooled, add as much
            evidence as each of them has for the target, compared with all of them: less evidence
            than the others have is negative. Without it, all tokens are treated alike, and no
            relevance is negative. It makes no difference if one token is read, with
            `with_identity`, in :meth:`relevance_maps`, and without `gradient_weighting`.
        propagate_to_input: return the relevance itself, propagated through all layers to the
        input ("full LRP", one of the paper's baselines), instead of the rollout. A convolution
            on the input follows the z-B rule with the sample's own minimum and maximum.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `Transformer Interpretability Beyond Attention Visualization
        <https://arxiv.org/abs/2012.09838>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> method = TransformerAttribution(model)
        >>> method.attribute(images, target=3).shape
        torch.Size([2, 3, 32, 32])
        >>> cat, dog = method.attribute_targets(images, [3, 5])
    """

    _keep = flow.KEEP | relevance.TABLE.keep

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        start_layer: int = 0,
        normalize_rows: bool = False,
        gradient_weighting: bool = True,
        propagate_to_input: bool = False,
        propagation: Propagation = "paper",
        normalize: bool = True,
        with_identity: bool = False,
        pooled_evidence: bool = True,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(
            forward_func,
            start_layer=start_layer,
            propagation=propagation,
            normalize_rows=normalize_rows,
            with_identity=with_identity,
            pooled_evidence=pooled_evidence and gradient_weighting,
            checkpoint=checkpoint,
        )
        self.normalize = normalize
        self.gradient_weighting = gradient_weighting
        self.propagate_to_input = propagate_to_input

    @property
    def _reads_maps(self) -> bool:
        return not self.propagate_to_input

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        if not self.propagate_to_input:
            return super()._relevance(forward, target, wanted)
        selected, value = forward.select(target)
        forward.history(value).require_attention()
        return propagated_relevance(forward, selected, value, wanted)

    def _account(self, forward: TracedForward, target: Any) -> Account:
        """Accounts for the relevance that maps are computed from, propagated to the inputs."""
        selected, value = forward.select(target)
        forward.history(value).require_attention()
        return relevance_account(self, forward, selected, value)

    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:
        return relevance_map(selection, calls, weighted=self.gradient_weighting)

    def _update_rule(self) -> RelevanceUpdate:
        return RelevanceUpdate(normalize=self.normalize, normalize_rows=self.normalize_rows)
