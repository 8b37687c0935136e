"""The base class of methods that multiply their attention maps over all layers."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from captum_transformer.attr.attention_flow_method import AttentionFlowMethod, row_sums
from captum_transformer.attr.logged import logged
from captum_transformer.attr.readout import with_evidence
from captum_transformer.attr.selection import Selection
from captum_transformer.attr.transformer_method import START, seed
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.calling.target import Target
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import ReadTwice, attend_with
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.ledger import Ledger
from captum_transformer.rules.streams.relevancies import Relevancies, last_call, shares_of_queries
from captum_transformer.rules.streams.update import UpdateRule
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.history import History
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.value import Value
from captum_transformer.trace.versions import Version

Propagation = Literal["paper", "flow"]


class RolloutMethod(AttentionFlowMethod):
    r"""A method that multiplies ``I +`` a map of each attention call over the layers.

    Within one set of tokens this is the token flow: the row of
    :math:`R = (I + \bar A_L) \cdots (I + \bar A_1)` that the target is read from. If a model has
    attention from one set of tokens to another (text and image, decoder and encoder), the ICCV
    2021 paper has rules for whole matrices, which are different.

    Tokens of the input that the target is read from (all that are pooled, a ``[CLS]``, a decoder's
    last token) have the ``I`` in their entries: it is the same for all targets, and far larger than
    the rest. It is left out, so the result is :math:`R - I`, without a subtraction: relevance
    that has passed attention is propagated separately from the rest. For a learned class token,
    which is not an input, both are the same.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: attention calls before this one contribute nothing; negative counts from
            the last. In a model with several towers, each has its own count.
        propagation: ``"paper"`` follows the matrix rules if there is cross-attention;
            ``"flow"`` follows the token flow everywhere. Without cross-attention they are equal.
        normalize_rows: divide each row of :math:`I + \bar A` by its sum.
        with_identity: also count paths without attention: the papers' row of :math:`R`, in which
            each token that the target is read from has an additional constant. An input without
            attention, such as a table next to a text, has zero relevance otherwise.
        pooled_evidence: if the target is read from several tokens that are pooled, add as much
            evidence as each of them has for the target, compared with all of them: less evidence
            than the others have is negative. Without it, all tokens are treated alike, and no
            relevance is negative. It makes no difference if one token is read, with
            `with_identity`, and if maps are the same for all targets.
        checkpoint: as in :class:`TransformerMethod`.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        start_layer: int = 0,
        propagation: Propagation = "paper",
        normalize_rows: bool = False,
        with_identity: bool = False,
        pooled_evidence: bool = True,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, checkpoint=checkpoint)
        if propagation not in ("paper", "flow"):
            raise ValueError(f"propagation must be 'paper' or 'flow', got {propagation!r}.")
        self.start_layer = start_layer
        self.propagation = propagation
        self.normalize_rows = normalize_rows
        self.with_identity = with_identity
        self.pooled_evidence = pooled_evidence

    @property
    def _all_edges(self) -> bool:  # type: ignore[override]
        return bool(self.checkpoint)

    @abstractmethod
    def _update_rule(self) -> UpdateRule:
        """Returns the rule by which an attention call updates the matrices of its streams."""

    @logged
    def relevance_maps(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[tuple[str, str], Tensor]:
        """Returns the full maps R of the relevance of each token for each other one.

        Paths without attention, from each token only to itself, are left out as in
        attributions, unless the method is created ``with_identity=True``.

        The arguments are those of :meth:`attribute`.

        Returns:
            ``{(queries, keys): R}`` with ``R`` of shape ``(samples, queries, keys)``, for each
            set of tokens that attends and each set that it has relevance from. A set of tokens has
            the name of the input that it comes from, or of several, with plus signs, if it was
            concatenated; ``"learned"`` is for queries that don't depend on an input, as in DETR.
            Learned tokens among others, such as a class token, are included.

        Raises:
            UnsupportedOperationError: if tokens are merged, dropped or split into windows between
                attention calls.
        """
        arguments = Arguments[Any](inputs, additional_forward_args, additional_forward_kwargs)
        with self._traced(arguments) as forward:
            selection = self._selection(forward, target, ())
            with in_full_precision(forward.inputs[0].device):
                _refuse_shared_queries(selection.history)
                return self._relevancies(selection).maps()

    def _carried(self, selection: Selection) -> tuple[dict[Value, Tensor], Ledger]:
        passed, ledger = self._passed(selection)
        if self.pooled_evidence and self._class_specific and not self.with_identity:
            passed = with_evidence(passed, ledger, selection)
        return passed, ledger

    def _passed(self, selection: Selection) -> tuple[dict[Value, Tensor], Ledger]:
        if self.propagation == "flow":
            return self._flowed(selection)
        _refuse_shared_queries(selection.history)
        if not selection.history.streams.cross_attention:
            return self._flowed(selection)
        relevancies = self._relevancies(selection)
        at_start = relevancies.at_start(_read(selection))
        self._require_attention(list(at_start), selection)
        flow = TokenFlow(selection.forward.tape, {})
        found = flow.conserved(at_start, selection.wanted, relevancies)
        relevancies.are_in_place()
        return found

    def _flowed(self, selection: Selection) -> tuple[dict[Value, Tensor], Ledger]:
        checks: list[Callable[[], None]] | None = None
        if self.checkpoint and not self.normalize_rows:
            checks = []
        try:
            carried = super()._carried(Selection(*selection[:4], checks))
            for check in checks or ():
                check()
        finally:
            if checks is not None:
                checks.clear()  # they hold references to the selection
        read = [call.value.value for call in selection.from_layer(self.start_layer)]
        self._require_attention([value for value in read if value is not None], selection)
        return carried

    def _require_attention(self, read: Sequence[Value], selection: Selection) -> None:
        """Raises an error if no attention that counts lies between the inputs and the score.

        Args:
            read: the values that attention passes relevance on to.
            selection: the scores that are explained.
        """
        if self.with_identity:
            return
        flow = TokenFlow(selection.forward.tape, {})
        if not any(flow.has_way(value, selection.wanted) for value in read):
            names = " and ".join(map(repr, selection.forward.names))
            raise UnsupportedOperationError(
                f"No attention that counts leads from the score to {names}, so "
                f"{type(self).__name__} has no relevance to give. Choose an earlier `start_layer`, "
                "or take `with_identity=True`, which counts what passes no attention, too."
            )

    def _heads(
        self, forward: TracedForward, target: Any, calls: Sequence[AttentionCall]
    ) -> dict[AttentionCall, Tensor]:
        _, score = self._select(forward, target)
        if self.propagation == "paper" and forward.history(score).streams.cross_attention:
            raise UnsupportedOperationError(
                "Where there is cross-attention, the paper's rules are for whole matrices and not "
                "for heads. Use `propagation='flow'`."
            )
        return super()._heads(forward, target, calls)

    def _relevancies(self, selection: Selection) -> Relevancies:
        calls = selection.from_layer(self.start_layer)
        maps = self._maps(selection, calls)
        dtype = accumulation_dtype(selection.selected.dtype)
        return Relevancies(
            selection.forward,
            selection.history,
            maps,
            self._update_rule(),
            calls,
            dtype,
            direct=self.with_identity,
        )

    def _flow(self, selection: Selection) -> TokenFlow:
        calls = selection.from_layer(self.start_layer)
        maps = self._maps(selection, calls)
        if self.normalize_rows:
            maps = ReadTwice(maps)
        return TokenFlow(
            selection.forward.tape,
            {call.layer: attend_with(maps) for call in calls},
            direct=self.with_identity,
            row_sums=(lambda call: row_sums(maps, call)) if self.normalize_rows else None,
        )


def _refuse_shared_queries(history: History) -> None:
    """Raises an error if learned queries attended to each other before they were repeated."""
    # Constants that meet no input in attention, such as a text tower without inputs, are allowed.
    met = 0
    for call in history.calls:
        query = None if call.output.learned else query_value(call)
        met |= 0 if query is None else query.attention
    learned = (call for call in history.calls if call.output.learned and met >> call.layer & 1)
    if any(call.output.samples is None for call in learned):
        raise UnsupportedOperationError(
            "Learned queries attended to each other once for all samples, or it is not known where "
            "these lie, but the paper's rules ask for what they got of it, which differs from "
            "sample to sample. Explain the samples one by one, or use `propagation='flow'`."
        )


def _read(selection: Selection) -> dict[Version, Tensor]:
    """Returns the shares ``(samples, tokens)`` of each stream that the score is read from."""
    forward = selection.forward
    versions = selection.history.streams[selection.value]
    if any(version.is_start for version in versions):
        raise UnsupportedOperationError(
            "The score depends on tokens that have not attended to any, beside others that have: "
            "the paper has no rule for that. Use `propagation='flow'`."
        )
    calls = {version: last_call(version) for version in versions}
    seeds = seed(forward, selection.selected, selection.value, start=START)
    reached = TokenFlow(forward.tape, {})(seeds, [call.output for call in calls.values()])
    return {
        version: shares_of_queries(call, reached[call.output]) for version, call in calls.items()
    }
