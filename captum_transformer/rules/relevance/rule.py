"""The relevance pass of Chefer et al. (CVPR 2021): layer-wise relevance propagation, as a table.

Linear maps follow the alpha-beta rule with alpha = 1, beta = 0, additions are normalised
(eq. 9-10), products of two signals follow the z-rule and share the relevance in halves, and
softmax, norms and activations pass it on unchanged.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.propagate import Shares, share_of_ids, transposed, unsupported
from captum_transformer.rules.rearranged import rearranged
from captum_transformer.rules.relevance.addition import addition, summed
from captum_transformer.rules.relevance.homogeneous import added_at, length, moment, terms, z_rule
from captum_transformer.rules.relevance.linear import Magnitudes, alpha_beta
from captum_transformer.rules.relevance.product import convolution, product
from captum_transformer.rules.relevance.sparsity import DENSE, Sparsity
from captum_transformer.rules.relevance.totals import constants, passed_on, remaining
from captum_transformer.trace.kinds import AS_OTHERS, BY_ENTRY, CONVOLUTIONS, MOVES, Kind
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import views_of

OneOutputRule = Callable[[Operation, Tensor], list[Tensor | None]]


class Entry(NamedTuple):
    """A line of a table.

    Attributes:
        rule: distributes the relevance of the first output; the other outputs have none.
        keeps: whether the rule reads the operands' data, so that they are kept.
        of_all: whether the rule gets the relevance of all outputs, in a list.
    """

    rule: Callable[[Operation, Any], list[Tensor | None]]
    keeps: bool = False
    of_all: bool = False


class Table:
    """The rules of a pass by kind of operation; what isn't in it is refused.

    A method is a table with some entries changed: ``table | {Kind.ADD: Entry(rule, keeps=True)}``.

    Args:
        entries: a rule for each kind.
    """

    def __init__(self, entries: Mapping[Kind, Entry]) -> None:
        self.entries = dict(entries)

    def __or__(self, changed: Mapping[Kind, Entry]) -> "Table":
        return Table({**self.entries, **changed})

    def __call__(self, operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
        """Applies the rule for the operation's kind."""
        entry = self.entries.get(operation.kind)
        if entry is None:
            raise unsupported(operation, "it is unknown what it passes on to its operands")
        if entry.of_all:
            return entry.rule(operation, incoming)
        first, *others = incoming
        if first is None or any(other is not None for other in others):
            raise unsupported(operation, "only its first output has a rule")
        return entry.rule(operation, first)

    @property
    def keep(self) -> frozenset[Kind]:
        """The kinds of operation whose operands the rules read."""
        return frozenset(kind for kind, entry in self.entries.items() if entry.keeps)


def moved(operation: Operation, incoming: list[Tensor | None]) -> Shares:
    """Moves relevance back to where entries came from; filled entries keep their relevance."""
    shares = rearranged(operation, incoming)
    if views_of(operation) is not None or operation.kind in AS_OTHERS:
        return Shares(shares)
    joined = operation.kind in (Kind.CONCATENATE, Kind.STACK) or constants(operation)
    reason = Reason.JOINED if joined else Reason.FILLED
    return Shares(shares, {reason: remaining(operation, incoming, shares)})


def selected(operation: Operation, incoming: list[Tensor | None]) -> Shares:
    """Gives all to the entry that was chosen, or to each by its weight in a smooth maximum."""
    shares = transposed(operation, [in_full(o) for o, _ in operation.traced()], incoming)
    if not constants(operation):
        return Shares(shares)
    return Shares(shares, {Reason.CONSTANT: remaining(operation, incoming, shares)})


def looked_up(operation: Operation, relevance: Tensor) -> Shares:
    """Gives the relevance of an embedding, summed over its features, to the token id."""
    traced = operation.traced()
    (ids, _), *_ = traced
    of_id = share_of_ids(operation, ids, relevance) / len(traced)
    return Shares(of_id for _ in traced)


def solved(operation: Operation, relevance: Tensor) -> Shares:
    """Gives all relevance to the right-hand side; the matrix gets none, like a norm's divisor."""
    return z_rule(operation, relevance, among=[operation.arguments["other"]])


def sampled(operation: Operation, relevance: Tensor) -> Shares:
    """Gives entries relevance by their weight in the interpolation; positions get none."""
    return z_rule(operation, relevance, among=[operation.arguments["input"]])


_PASSED_ON = BY_ENTRY - {Kind.ADD, Kind.SUB, Kind.CONTRAST}

TABLE = Table(
    {
        **dict.fromkeys(MOVES, Entry(moved, of_all=True)),
        **dict.fromkeys(_PASSED_ON, Entry(passed_on)),
        Kind.EMBEDDING: Entry(looked_up),
        **dict.fromkeys((Kind.ADD, Kind.SUB), Entry(addition, keeps=True)),
        **dict.fromkeys((Kind.ATTENTION, Kind.PRODUCT), Entry(product, keeps=True)),
        **dict.fromkeys(CONVOLUTIONS, Entry(convolution, keeps=True)),
        **dict.fromkeys((Kind.SUM, Kind.MEAN), Entry(summed, keeps=True)),
        Kind.POOL: Entry(terms, keeps=True),
        Kind.SUM_AT_INDICES: Entry(added_at, keeps=True),
        Kind.DISTANCE: Entry(length, keeps=True),
        Kind.DERIVED: Entry(moment, keeps=True),
        Kind.SOLVE: Entry(solved, keeps=True),
        Kind.SAMPLE: Entry(sampled, keeps=True),
        **dict.fromkeys(
            (Kind.MAXIMUM, Kind.SMOOTH_MAXIMUM, Kind.CHOICE),
            Entry(selected, keeps=True, of_all=True),
        ),
    }
)


def with_sparsity(
    sparsity: Mapping[Value, Sparsity], magnitudes: Magnitudes | None = None
) -> Table:
    """Returns the table for a score that is read from a slice of a tensor.

    Args:
        sparsity: the result of `sparsity_from`.
        magnitudes: what `alpha_beta` keeps from one target to the next.
    """

    def placed(operation: Operation, relevance: Tensor) -> Shares:
        output = operation.outputs[0]
        known = DENSE if output is None else sparsity.get(output, DENSE)
        of_linear = partial(alpha_beta, sparsity=known, magnitudes=magnitudes)
        return product(operation, relevance, of_linear)

    return TABLE | {Kind.PRODUCT: Entry(placed, keeps=True)}
