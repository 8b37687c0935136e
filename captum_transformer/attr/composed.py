"""Methods that are composed of rules for a pass, or of a map for each attention call."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer.account import Account
from captum_transformer.attr.accounting import AccountableMethod
from captum_transformer.attr.gradient_times_input import GradientTimesInput
from captum_transformer.attr.propagated import propagated_relevance, relevance_account
from captum_transformer.attr.rollout_method import RolloutMethod
from captum_transformer.attr.selection import Selection
from captum_transformer.calling import Arguments
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.calling.reading import truth
from captum_transformer.errors import InvalidRuleError
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.gradient.tables import method
from captum_transformer.rules.ledger import ROUNDING_OF_OPERATION
from captum_transformer.rules.relevance.rule import Entry, OneOutputRule
from captum_transformer.rules.streams.update import RolloutUpdate
from captum_transformer.trace import AttentionCall, TracedForward, Value
from captum_transformer.trace.history import History
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.recorder import ForwardRule, ForwardRules


class RelevanceMethod(AccountableMethod):
    r"""Layer-wise relevance propagation down to the inputs, with your own rules.

    Operations follow the rules of full LRP, ``TransformerAttribution(propagate_to_input=True)``,
    except for the kinds in ``rules``. A rule is a function of an
    :class:`~captum_transformer.extend.Operation` and the relevance of its output, and returns the
    relevance of each operand in ``operation.traced()``.

    Args:
        forward_func: the model or any callable that runs one.
        rules: a rule for each kind of operation that is treated differently. It may read the
            operands' data.
        checkpoint: as in :class:`TransformerMethod`.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import extend
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> method = extend.RelevanceMethod(model, {extend.Kind.PRODUCT: extend.z_rule})
        >>> method.attribute(torch.rand(1, 3, 32, 32), target=3).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        rules: Mapping[Kind, OneOutputRule],
        *,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, checkpoint=checkpoint)
        self.rules = {kind: Entry(rule, keeps=True) for kind, rule in rules.items()}
        self._keep = flow.KEEP | (relevance.TABLE | self.rules).keep

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        return propagated_relevance(forward, *forward.select(target), wanted, self.rules)

    def _account(self, forward: TracedForward, target: Any) -> Account:
        return relevance_account(self, forward, *forward.select(target), self.rules)


class GradientMethod(GradientTimesInput):
    r"""Gradient x input, with your own rules for what counts as constant.

    A rule is a function of an :class:`~captum_transformer.extend.Operation` before it runs. It runs
    the operation and returns its result, whose values must be the same; its graph in
    autograd may differ. It returns ``NotImplemented`` to leave the operation unchanged.

    Args:
        forward_func: the model or any callable that runs one.
        rules: a rule for each kind of operation that is treated differently than by autograd;
            ``extend.AH``, ``extend.LN``, ``extend.IDENTITY`` and ``extend.UNIFORM`` are such
            tables, and :func:`~captum_transformer.extend.joined` joins several.
        checkpoint: as in :class:`TransformerMethod`.

    Raises:
        InvalidRuleError: while explaining, if a rule's result differs from the operation's, or
            its gradient is NaN. For this check, each operation with a rule runs twice.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import extend
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> only_norms_held = extend.GradientMethod(model, extend.LN)
        >>> only_norms_held.attribute(torch.rand(1, 3, 32, 32), target=3).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        rules: ForwardRules,
        *,
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, checkpoint=checkpoint)
        self.rules = {kind: _checked(rule) for kind, rule in method(rules).items()}

    def _require_attention(self, history: History) -> None:
        """Accepts models without attention, since the rules don't need it."""

    def _forward_rules(self, arguments: Arguments[Any]) -> ForwardRules:  # noqa: ARG002
        return self.rules


def _checked(rule: ForwardRule) -> ForwardRule:
    """Wraps a rule so that its result is compared with the operation's own."""

    def compared(operation: Operation) -> object:
        result = rule(operation)
        if result is NotImplemented:
            return result
        operation.rule = None  # it runs again with the comparison
        signals = [o.tensor for o, _ in operation.traced() if o.tensor.requires_grad]
        found, plain = list(leaves(Tensor, result)), operation.run(lambda o: o.tensor)
        expected = list(leaves(Tensor, plain))
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (found, expected)]
        why = ""
        if type(result) is not type(plain) or shapes[0] != shapes[1]:
            why = f"returned {shapes[0] or type(result).__name__}, not {shapes[1]}"
        elif not all(map(_alike, found, expected)):
            why = "returned other numbers than the operation gives"
        elif _is_finite(expected, signals) and not _is_finite(found, signals):
            why = "has a gradient that is NaN or infinite, where autograd has none"
        if not why:
            return result
        raise InvalidRuleError(
            f"The rule for {operation.described} {why}. It has to return what the operation "
            "computes, as `operation.run` does with other tensors in the place of its operands, "
            "and to divide by what may be zero with `captum_transformer.extend.ratio`."
        )

    return compared


def _alike(found: Tensor, expected: Tensor) -> bool:
    close = torch.isclose(found, expected, ROUNDING_OF_OPERATION, equal_nan=True).all()
    return truth(close, "whether a rule returns what the operation computes")


def _is_finite(outputs: Sequence[Tensor], signals: Sequence[Tensor]) -> bool:
    """Returns whether the gradient of the outputs' sum is finite."""
    given = [output for output in outputs if output.requires_grad]
    ones = [torch.ones_like(output) for output in given]
    if not given or not signals:
        return True
    slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
        given, signals, ones, retain_graph=True, allow_unused=True
    )
    finite = "whether the gradient of a rule is finite"
    return all(truth(slope.isfinite().all(), finite) for slope in slopes if slope is not None)


class MapMethod(RolloutMethod):
    r"""A rollout of your own maps: the row of :math:`(I + M_L) \cdots (I + M_1) - I`.

    Subclasses define the map of an attention call. Batches, masks, windows, several towers,
    row normalisation and the propagation to the pixels are provided.

    Args:
        forward_func: the model or any callable that runs one.
        start_layer: attention calls before this one contribute nothing.
        normalize_rows: divide each row of :math:`I + M` by its sum.
        propagation: what to do if there is cross-attention, ``"paper"`` or ``"flow"``.
        with_identity: also count paths without attention.
        pooled_evidence: if the target is read from pooled tokens, add the evidence of each, as
            in :class:`GenericAttentionRelevance`; only if maps are class-specific.
        checkpoint: as in :class:`TransformerMethod`.

    Attributes:
        class_specific: whether the maps depend on the target; if not, a target may be left out.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import extend
        >>> class UniformAttention(extend.MapMethod):
        ...     class_specific = False
        ...     def maps(self, explained, calls):
        ...         return lambda call, rows: torch.ones_like(call.probabilities(rows)) / 5
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32)
        >>> UniformAttention(model).attribute_tokens(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 4])
    """

    class_specific = True

    @property
    def _class_specific(self) -> bool:  # type: ignore[override]
        return self.class_specific

    @abstractmethod
    def maps(self, explained: Selection, calls: Sequence[AttentionCall]) -> MapBlock:
        """Returns a function that computes the map of each attention call.

        Args:
            explained: the traced forward pass and the score that is explained.
            calls: the attention calls that contribute.

        Returns:
            A function of a call and a slice of its queries: the map's rows ``(..., rows, keys)``.
        """

    def _maps(self, selection: Selection, calls: Sequence[AttentionCall]) -> MapBlock:
        maps = self.maps(selection, calls)

        def fitting(call: AttentionCall, rows: slice) -> Tensor:
            found: object = maps(call, rows)
            *lead, queries, keys = call.map_shape()
            expected = (*lead, len(range(queries)[rows]), keys)
            if isinstance(found, Tensor) and found.shape == expected:
                return found
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidRuleError(
                f"`maps` of {type(self).__name__} returned {given} for queries {rows.start} to "
                f"{rows.stop} of attention call {call.layer} ({call.module}). It has to return the "
                f"rows of the map, a tensor of the shape {expected}."
            )

        return fitting

    def _update_rule(self) -> RolloutUpdate:
        return RolloutUpdate(normalize_rows=self.normalize_rows)
