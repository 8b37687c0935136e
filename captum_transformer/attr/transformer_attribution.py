"""Chefer, Gur & Wolf (CVPR 2021): Transformer interpretability beyond attention visualization."""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from captum_transformer.account import Account
from captum_transformer.attr.accounting import AccountableMethod
from captum_transformer.attr.attention_flow_method import (
    gradient_map,
    gradients_in_order,
    output_gradients,
)
from captum_transformer.attr.rollout_method import Propagation, RolloutMethod
from captum_transformer.attr.selection import Selection
from captum_transformer.attr.transformer_method import START, scaled_back, seed
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.flow.apart import require_own_samples
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.ledger import Ledger, added_up
from captum_transformer.rules.propagate import Walk, conserved, propagate
from captum_transformer.rules.relevance.attention import attention_relevance
from captum_transformer.rules.relevance.rule import Entry, Table
from captum_transformer.rules.relevance.sparsity import sparsity_from
from captum_transformer.rules.streams.update import RelevanceUpdate
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.seams import GradientsInOrder
from captum_transformer.trace.tape import Tape
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


def propagated_relevance(
    forward: TracedForward,
    selected: Tensor,
    value: Value,
    wanted: Sequence[Value],
    changed: Mapping[Kind, Entry] = MappingProxyType({}),
) -> dict[Value, Tensor]:
    """Returns the relevance that reaches some values of the forward pass from a start of one.

    For a contrast it is the difference of the relevance of two scores, each propagated separately.
    Together they would start with a sum of zero, and normalised additions rescale to the sum that
    arrives.
    """
    found, *rest = (
        scaled_back(reached)
        for reached, _ in _propagated(forward, selected, value, wanted, changed)
    )
    for other in rest:
        found = {value: found[value] - other[value] for value in found}
    return found


def relevance_account(
    method: AccountableMethod,
    forward: TracedForward,
    selected: Tensor,
    value: Value,
    changed: Mapping[Kind, Entry] = MappingProxyType({}),
) -> Account:
    """Returns the account of the propagation to the inputs; for a contrast, of the difference."""
    account, *rest = (
        method.written_up(forward, ledger, added_up(ledger.started) / START)
        for _, ledger in _propagated(forward, selected, value, forward.values, changed)
    )
    for other in rest:
        account = account - other
    return account


def _propagated(
    forward: TracedForward,
    selected: Tensor,
    value: Value,
    wanted: Sequence[Value],
    changed: Mapping[Kind, Entry],
) -> Iterator[tuple[dict[Value, Tensor], Ledger]]:
    """Yields the relevance from the score, and its ledger, once for each side of a contrast."""
    forward.history(value).warn_of_rounding(selected.dtype)
    tape = forward.tape
    for side, seeds in _sides(forward, selected, value):
        rules = _rules(forward, side) | changed
        found, ledger = conserved(tape, seeds, rules, wanted)
        require_own_samples(functools.partial(_carried, tape, rules, wanted), seeds, found)
        yield found, ledger


def _carried(
    tape: Tape, rules: Table, wanted: Sequence[Value], seeds: Mapping[Value, Tensor]
) -> dict[Value, Tensor]:
    return propagate(tape, seeds, rules, wanted)


def _rules(forward: TracedForward, side: Value) -> Table:
    """Returns the rules for relevance that starts at a value."""
    return relevance.with_sparsity(sparsity_from(side, forward.tape), forward.for_all_targets)


def _sides(
    forward: TracedForward, selected: Tensor, value: Value
) -> Iterator[tuple[Value, dict[Value, Tensor]]]:
    """Yields where relevance starts: each side of a contrast, and each sign of weights."""
    if (combined := forward.combined(value)) is not None:
        dtype = accumulation_dtype(selected.dtype)
        for weights in combined.sides:
            yield combined.value, {combined.value: weights.to(dtype) * START}
        return
    operation = value.operation
    contrast = operation is not None and operation.kind is Kind.CONTRAST
    for side in [v for _, v in operation.traced()] if operation and contrast else [value]:
        yield side, seed(forward, selected, side, start=START)


def relevance_map(
    selection: Selection, calls: Sequence[AttentionCall], *, weighted: bool
) -> MapBlock:
    """The positive relevance of the attention probabilities, times their gradient if weighted."""
    forward, selected, value = selection.forward, selection.selected, selection.value
    found = gradients_in_order(selection, calls) if weighted else None
    if found is not None:
        forward.history(value).warn_of_rounding(selected.dtype)
        in_order = _InOrder(selection, calls, found.found)
        if selection.checks is not None:
            selection.checks.append(in_order.check)
        return _positive(in_order.at, gradient_map(found))
    if weighted:
        forward.require_slopes(selected, [call.edge for call in calls])
    reached = propagated_relevance(forward, selected, value, [call.output for call in calls])
    # After relevance, which needs more memory: there are no gradients to keep meanwhile.
    gradients = gradient_map(output_gradients(forward, selected, calls)) if weighted else None
    return _positive(lambda call: reached[call.output], gradients)


def _positive(
    relevance_at: Callable[[AttentionCall], Tensor], gradients: MapBlock | None
) -> MapBlock:
    def block(call: AttentionCall, rows: slice) -> Tensor:
        # The gradient first: a block that is recomputed for it also serves the relevance.
        of_call = None if gradients is None else gradients(call, rows)
        result = attention_relevance(call, relevance_at(call), rows)
        return (result if of_call is None else result.mul_(of_call)).relu_()

    return block


class _InOrder:
    """The relevance at the outputs of attention calls, propagated along with the gradient.

    Args:
        selection: the scores that are explained.
        calls: the attention calls.
        gradients: the gradients at the outputs, which report when a block is left.
    """

    def __init__(
        self, selection: Selection, calls: Sequence[AttentionCall], gradients: GradientsInOrder
    ) -> None:
        self._selection, self._calls, self._gradients = selection, calls, gradients
        self._here: dict[AttentionCall, Tensor] = {}
        self._walks = self._started()
        self._starts = gradients.starts
        gradients.leaving = self._leave

    def _started(self) -> list[Walk]:
        forward, selected, value = self._selection[:3]
        outputs = [call.output for call in self._calls]
        return [
            Walk(forward.tape, seeds, _rules(forward, side), outputs)
            for side, seeds in _sides(forward, selected, value)
        ]

    def _leave(self, place: int) -> None:
        """Propagates through the rest of a block while it is in memory."""
        self._here.clear()
        for walk in self._walks:
            walk.down_to(place)

    def at(self, call: AttentionCall) -> Tensor:
        """Returns the relevance at the output of a call."""
        if self._starts != self._gradients.starts:
            self._starts, self._walks = self._gradients.starts, self._started()
        if call not in self._here:
            parts = []
            for walk in self._walks:
                walk.down_to(call.operation.index)
                parts.append(scaled_back({call.output: walk.taken(call.output)})[call.output])
            self._here[call] = functools.reduce(operator.sub, parts)
        return self._here[call]

    def check(self) -> None:
        """Raises an error if a rule passed on a different sum than it got, without reporting it."""
        self._gradients.leaving = None  # they refer to each other
        for walk in self._walks:
            walk.down_to(0)
            walk.arrived()
        if not all(walk.ledger.balances() for walk in self._walks):
            forward, selected, value = self._selection[:3]
            propagated_relevance(forward, selected, value, [call.output for call in self._calls])
