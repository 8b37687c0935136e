"""Step functions such as rounding, whose derivative is zero though they depend on what they get.

A gradient that arrives at one is lost. It is refused where it would have gone on to what is asked
for, unless a method has a rule for the function, or the user counts it as what it rounds.

What autograd can't differentiate at all comes back in floating point later: integers that a signal
was cast to, and comparisons as features. There the trace writes down a step, from the signals.
Where a signal only chooses, as an index, a mask or a gate does, its choice is a constant.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.derivatives import derivatives
from captum_transformer.trace.entries import Entry, entry_of
from captum_transformer.trace.functions import ENTRY
from captum_transformer.trace.gates import OfEntry, may_be_step, works_by_entry
from captum_transformer.trace.kinds import CONVOLUTIONS, Form, Kind, Role
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.tape import Tape

MAY_STEP = frozenset({Kind.ENTRYWISE, Kind.UNKNOWN})
# What counts as the signal that it rounds: functions by name, and types of integers.
STRAIGHT_THROUGH: set[Any] = set()
_MAPS = CONVOLUTIONS | {Kind.PRODUCT}
# How large a signal is they say in steps; other integers and truth values say which it is.
_COUNT = frozenset({"bucketize", "searchsorted", "count_nonzero"})
# Of these it matters where they have found what they give, not what that is.
_CHOOSES = frozenset({Kind.CHOICE, Kind.MAXIMUM})
_CUTS_OFF = frozenset({"detach", "data"})
_STRAIGHT_THROUGH = (
    "To let it count as what it rounds (straight-through), use "
    "`captum_transformer.extend.straight_through({key})`, or write `x + (f(x) - x).detach()` in "
    "the model. "
)
_ADVICE = (
    "AttnLRP and LibraGrad have a rule for functions of each entry, AttentionRollout takes no "
    "gradient. To cut the dependence off, call `detach()` on what goes in."
)
_OF_INTEGERS = (
    "If it is a linear layer with quantised activations, say so by "
    "`captum_transformer.extend.describe_linear`, or leave the activations in floating point. "
    "To cut the dependence off, call `detach()` on what goes in."
)


class _Stepped(torch.autograd.Function):
    """A value that some signals have been made into, with a derivative of zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *signals: Tensor) -> Tensor:
        ctx.shapes = [signal.shape for signal in signals]
        ctx.dtypes = [signal.dtype for signal in signals]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (some,) = gradients
        pairs = zip(ctx.shapes, ctx.dtypes, strict=True)
        return None, *[some.new_zeros(shape, dtype=dtype) for shape, dtype in pairs]


class _Through(torch.autograd.Function):
    """A function of each entry whose derivative counts as one."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, operation: Operation) -> Tensor:
        ctx.dtype = signal.dtype
        (given, _), *_ = operation.traced()
        result: Tensor = operation.run(lambda o: signal if o is given else o.tensor)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0].to(ctx.dtype), None


def to_integers_and_back(input: Tensor, between: torch.dtype, dtype: torch.dtype) -> Tensor:  # noqa: A002
    """A signal, cast to integers and back, as one operation for the trace."""
    stepped: Tensor = _Stepped.apply(input.detach().to(between).to(dtype), input)
    return stepped


def made_of_integers(value: Tensor, name: str, *signals: Tensor) -> Tensor:  # noqa: ARG001
    """What was computed from integers or comparisons of signals, as one operation for the trace.

    Args:
        value: what it is.
        name: what made these integers or comparisons.
        signals: of what.
    """
    stepped: Tensor = _Stepped.apply(value.detach(), *signals)
    return stepped


setattr(to_integers_and_back, ENTRY, entry_of(Kind.ENTRYWISE, "input between dtype !step"))
setattr(made_of_integers, ENTRY, entry_of(Kind.UNKNOWN, "weight name *input !step"))


def is_step(operation: Operation) -> bool:
    """Whether it is a step function, whose derivative is zero wherever it has one."""
    if operation.function.entry.form is Form.STEP:
        return not any(value.dtype.is_complex for _, value in operation.traced())
    return operation.arguments.get("rounding_mode") is not None


def rounds(entry: Entry) -> bool:
    """Whether a function is a step function of one signal, as its line of the table says."""
    of_one = "other" not in entry.parameters and entry.kind is Kind.ENTRYWISE
    return of_one and entry.form is Form.STEP


def _key(operation: Operation) -> Any:
    """By what it counts as the signal that it rounds, if it does."""
    return operation.arguments.get("between", operation.name)


def goes_straight_through(operation: Operation) -> bool:
    """Whether the user has it count as what it rounds."""
    return bool(STRAIGHT_THROUGH) and _key(operation) in STRAIGHT_THROUGH


def straight_through(operation: Operation) -> Any:
    """The rule for that: the derivative of the signal itself."""
    ((signal, _),) = operation.traced()
    return _Through.apply(signal.tensor, operation)


class _Made(NamedTuple):
    """Of what a tensor without a derivative was made.

    Attributes:
        signals: the signals that it was made of.
        name: the function that made it, and where.
        counts: whether it says how large they are, and not merely which of them.
        cast: the version of the one signal whose entries, as integers, it has; None if it is not
            such a cast.
    """

    signals: tuple[Tensor, ...]
    name: str
    counts: bool
    cast: int | None = None


class Chosen:
    """Integers and truth values that were made of signals, and what was computed from them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], _Made]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def clear(self) -> None:
        """Forgets everything."""
        self._known.clear()

    def of_signals(self, operation: Operation, module: str, result: Any) -> None:
        """Notes what an operation on signals in a module gives that has no derivative."""
        signals = [value.holder() for _, value in operation.traced() if not value.holds_ids]
        made = tuple(signal for signal in signals if signal is not None)
        if not made or operation.name in _CUTS_OFF:
            return
        name = f"`{operation.name}`" + (f" in `{module}`" if module else "")
        counts = operation.kind not in _CHOOSES
        cast = made[0]._version if operation.kind is Kind.COPY else None
        self._join([_Made(made, name, counts)], result, cast)

    def of_question(self, name: str, tape: Tape, given: Any, result: Any) -> None:
        """Notes the answer to a question about signals, such as a comparison or where they are."""
        made = []
        for tensor in leaves(Tensor, given):
            value = tape.held_by(tensor)
            if value is not None and not value.holds_ids and not value.learned:
                made.append(_Made((tensor,), f"`{name}`", counts=name in _COUNT))
            elif (known := self._of(tensor)) is not None:
                made.append(known)
        self._join(made, result)

    def passed_on(self, operation: Operation, result: Any, written: Sequence[Tensor]) -> Any:
        """Notes what a function of constants gives or writes, if they were made of signals.

        Returns:
            The function that is that step, and its arguments; None if the result stays a constant.
        """
        found = [(operand, self._of(operand.given)) for operand in operation.operands]
        made = [of for _, of in found if of is not None]
        if not made:
            return None
        parts = [operand for operand, of in found if of is not None]
        steps = any(of.counts for of in made) or _maps_features(operation, parts)
        if operation.name in _CUTS_OFF:
            return None
        if steps and isinstance(result, Tensor) and result.is_floating_point():
            return self._step(operation, made, result)
        self._join(made, (result, *written))
        return None

    def _step(self, operation: Operation, made: Sequence[_Made], result: Tensor) -> Any:
        of, (operand, *others) = made[0], operation.operands
        (signal, *further) = of.signals
        if (
            operation.kind is Kind.COPY
            and not (others or further)
            and signal._version == of.cast
            and (signal.shape, signal.device) == (result.shape, result.device)
        ):
            return to_integers_and_back, (signal, operand.dtype, result.dtype)
        signals = {id(signal): signal for of in made for signal in of.signals}
        return made_of_integers, (result, of.name, *signals.values())

    def _of(self, tensor: Tensor) -> _Made | None:
        reference, made = self._known.get(id(tensor), (None, None))
        return made if reference is not None and reference() is tensor else None

    def _join(self, made: Sequence[_Made], result: Any, cast: int | None = None) -> None:
        """Notes that something without a derivative was made of what is known to be so."""
        if not made:
            return
        signals = {id(signal): signal for of in made for signal in of.signals}
        counts = any(of.counts for of in made)
        for tensor in leaves(Tensor, result):
            if not tensor.requires_grad:
                whole = counts and tensor.dtype != torch.bool
                self._add(tensor, _Made(tuple(signals.values()), made[0].name, whole, cast))

    def _add(self, tensor: Tensor, made: _Made) -> None:
        known, key = self._known, id(tensor)
        known[key] = weakref.ref(tensor, lambda _: known.pop(key, None)), made


def _maps_features(operation: Operation, parts: Sequence[Operand]) -> bool:
    """Whether it is a linear map of them with weights that are something else."""
    if operation.kind not in _MAPS:
        return False
    signals = [o for o in operation.operands if o.role is Role.SIGNAL or o.role is Role.WEIGHT]
    return any(o in parts for o in signals) and not all(o in parts for o in signals)


class StepFunction(NamedTuple):
    """A function in steps that has run without a rule, or one that may be such.

    Attributes:
        operation: what it is, or completes it.
        edge: where its output stands in the autograd graph.
        whole: the function of one entry that it completes, if that is what may be one.
        flat: whether it is, of one entry.
    """

    operation: Operation
    edge: GradientEdge
    whole: OfEntry | None = None
    flat: Tensor | None = None


class Completed(NamedTuple):
    """A function of one entry that an operation is about to complete.

    Attributes:
        whole: the function.
        signal: its argument.
        edge: where that stands in the autograd graph.
    """

    whole: OfEntry
    signal: Tensor
    edge: GradientEdge

    def step(self, operation: Operation, result: Tensor) -> StepFunction:
        """The function, with whether its derivative is zero though its entries differ."""
        edge, result = get_gradient_edge(result), result.detach()
        with torch.enable_grad():
            ones = torch.ones_like(result)
            (slope,) = torch.autograd.grad(
                edge, self.edge, ones, retain_graph=True, allow_unused=True
            )
        if slope is None:
            slope = torch.zeros_like(result)
        rounding = 64 * torch.finfo(result.dtype).eps * result.abs()
        flat = ((slope * self.signal).abs() <= rounding) | ~slope.isfinite() | ~result.isfinite()
        known = result.nan_to_num(0.0, 0.0, 0.0)
        flat = flat.all() & (known != known.flatten()[:1]).any()
        return StepFunction(operation, edge, self.whole, flat)


def completed(operation: Operation) -> Completed | None:
    """What may be a step function, before the operation runs that completes it."""
    whole = may_be_step(operation)
    signal = None if whole is None else whole.source.holder()
    if whole is None or signal is None or not signal.requires_grad:
        return None
    if signal._version != whole.source.version or not signal.numel():
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(signal):
        return None
    return Completed(whole, signal.detach().clone(), get_gradient_edge(signal))


def refuse_steps(
    steps: Sequence[StepFunction], total: Tensor, points: Iterable[GradientEdge], tape: Tape
) -> None:
    """Raises if a gradient would have to go through a step function.

    Args:
        steps: the step functions of the forward pass, and what may be some.
        total: what is differentiated.
        points: where the gradient is asked for.
        tape: the forward pass.
    """
    if not steps:
        return
    wholes = {step.operation: step.whole for step in steps if step.whole is not None}
    steps = [step for step in steps if step.flat is None or truth(step.flat)]
    slopes = derivatives(total, [step.edge for step in steps], tape.operations) if steps else ()
    asked = {point.node for point in points}
    for step, slope in zip(steps, slopes, strict=True):
        if slope is None or not truth((slope != 0).any()) or not _leads_to(step.edge.node, asked):
            continue
        if _is_part(step.operation, tape, wholes):
            continue
        raise UnsupportedOperationError(_why(step))


def _why(step: StepFunction) -> str:
    operation, whole = step.operation, step.whole
    key = operation.argument("between") or f"torch.{operation.name}"
    instead = _STRAIGHT_THROUGH.format(key=key) if rounds(operation.function.entry) else ""
    what = f"{operation.described},"
    if whole is not None:
        names = [f"`{one.name}`" for one in reversed(whole.operations)]
        what = f"What {operation.described}, makes of one signal by {', '.join(names)}"
    return (
        f"{what} is a step function: its derivative is zero, so what the score "
        f"depends on through it would count as nothing. {instead}{_ADVICE}"
    )


def of_integers(operation: Operation) -> UnsupportedOperationError:
    """The error for what was computed from integers or comparisons of signals."""
    shapes = [tuple(value.shape) for _, value in operation.traced()]
    value: Operand = operation.arguments["weight"]
    return UnsupportedOperationError(
        f"What {operation.arguments['name']} makes of signals of shapes {shapes}, integers or "
        f"truth values, comes back as numbers of shape {tuple(value.size)}: they change in steps, "
        "so what the score depends on through them would count as nothing. " + _OF_INTEGERS
    )


def _leads_to(node: Any, asked: Iterable[Any]) -> bool:
    """Whether one of some points lies behind a node of the autograd graph."""
    asked = set(asked)
    stack, seen = [parent for parent, _ in node.next_functions], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node in asked:
            return True
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return False


def _is_part(step: Operation, tape: Tape, wholes: Mapping[Operation, OfEntry]) -> bool:
    """Whether it is a part of a function of each entry that has a slope, as in ``x - floor(x)``.

    One that has none in turn stands among the steps itself.
    """
    stack = [value for value in step.outputs if value is not None]
    while stack:
        value = stack.pop()
        for operation in tape.operations[step.index + 1 :]:
            if not any(given is value for _, given in operation.traced()):
                continue
            whole = wholes.get(operation)
            if whole is not None and step in whole.operations:
                continue
            if not works_by_entry(operation) or (whole is None and len(operation.traced()) > 1):
                return False
            stack += [v for v in operation.outputs if v is not None]
    return True
