"""Chefer, Gur & Wolf (ICCV 2021): generic attention-model explainability."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_transformer.attr.attention_flow_method import (
    gradient_map,
    selected_gradients,
)
from captum_transformer.attr.rollout_method import Propagation, RolloutMethod
from captum_transformer.attr.selection import Selection
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.streams.update import RelevanceUpdate
from captum_transformer.trace.attention import AttentionCall


class GenericAttentionRelevance(RolloutMethod):
    r"""Relevance from attention times its gradient, layer by layer (often called GAE).

    With the attention probabilities :math:`A` of a layer and the target's gradient there, each
    attention call has the map (eq. 5 of the paper)

    .. math:: \bar A = E_h\big[(\nabla A \odot A)^+\big]

    and updates :math:`R^{qk}`, the relevance that each token of one set has from each token of
    another, starting from :math:`R^{qq} = I` (eq. 6-11):

    .. math::
        \text{self-attention:} \quad & R^{qk} \leftarrow R^{qk} + \bar A R^{qk} \\
        \text{cross-attention:} \quad
            & R^{qk} \leftarrow R^{qk} + N(R^{qq})^\top \bar A \, N(R^{kk}) \\
            & R^{qs} \leftarrow R^{qs} + \bar A R^{ks} \quad \text{for all other sets } s

    where :math:`N(R) = I + \mathrm{rownorm}(R - I)`. The relevance of the input tokens is the row
    of :math:`R - I` that the target is read from (a class token, the last token, the mean over
    tokens, depending on the model): the authors also leave that entry out, or overwrite it. Rows
    are not normalised in self-attention and all layers count, as in the authors' code.

    Without cross-attention that row is a token flow (``propagation="flow"``), which needs no map
    of all pairs of tokens and is used. With cross-attention the two differ: the flow passes
    shares from the decoder's tokens to those of the encoder that they attend to, each step as in
    self-attention. The matrix rules mix the queries' self-attention in once more, transposed,
    count all of it in each cross-attention, and divide it by its size.

    The authors' code gives NaN, or zero relevance everywhere, if a token attends to nothing that
    matters, as all padded ones do: its row of :math:`R - I` is zero and is divided by its sum.
    Here such a row stays zero, so a padded sample has the same result as without padding.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: attention calls before this one contribute nothing; negative counts from
            the last. In a model with several towers, each has its own count.
        propagation: what to do if there is cross-attention: ``"paper"`` follows the matrix
            rules, ``"flow"`` the token flow. Without cross-attention they are equal.
        normalize: normalise self-relevance in cross-attention, as :math:`N` does (eq. 8, 9).
        contextualize: mix self-relevance into cross-attention (eq. 10); without it the paper's
            ablation :math:`R^{qk} \leftarrow R^{qk} + \bar A`.
        with_identity: also count paths without attention: the paper's row of :math:`R`, in which
            each token that the target is read from has an additional constant.
        pooled_evidence: if the target is read from several tokens that are pooled, add as much
            evidence as each of them has for the target, compared with all of them: less evidence
            than the others have is negative. Without it, all tokens are treated alike, and no
            relevance is negative. It makes no difference if one token is read, with
            `with_identity`, and in :meth:`relevance_maps`.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
        Transformers <https://arxiv.org/abs/2103.15679>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> method = GenericAttentionRelevance(model)
        >>> method.attribute(images, target=torch.tensor([3, 7])).shape
        torch.Size([2, 3, 32, 32])
        >>> method.attribute_tokens(images, target=3).shape
        torch.Size([2, 4])

        With an encoder and a decoder, both explained:

        >>> model = torch.nn.Transformer(16, 2, 1, 1, 32, batch_first=True).eval()
        >>> source, words = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
        >>> method = GenericAttentionRelevance(model)
        >>> of_source, of_words = method.attribute_tokens((source, words), target=(2, 7))
        >>> of_source.shape, of_words.shape
        (torch.Size([2, 5]), torch.Size([2, 3]))
        >>> maps = method.relevance_maps((source, words), target=(2, 7))
        >>> {streams: tuple(relevance.shape) for streams, relevance in maps.items()}
        {('src', 'src'): (2, 5, 5), ('tgt', 'tgt'): (2, 3, 3), ('tgt', 'src'): (2, 3, 5)}
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        start_layer: int = 0,
        propagation: Propagation = "paper",
        normalize: bool = True,
        contextualize: bool = True,
        with_identity: bool = False,
        pooled_evidence: bool = True,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(
            forward_func,
            start_layer=start_layer,
            propagation=propagation,
            with_identity=with_identity,
            pooled_evidence=pooled_evidence,
            checkpoint=checkpoint,
        )
        self.normalize = normalize
        self.contextualize = contextualize

    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:
        gradients = gradient_map(selected_gradients(selection, calls))

        def block(call: AttentionCall, rows: slice) -> Tensor:
            return gradients(call, rows).mul_(call.probabilities(rows)).relu_()

        return block

    def _update_rule(self) -> RelevanceUpdate:
        return RelevanceUpdate(normalize=self.normalize, contextualize=self.contextualize)
