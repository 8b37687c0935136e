"""Step functions such as rounding, whose derivative is zero although they depend on their input.

A gradient that arrives at a step function is lost. An error is raised if the gradient would have
reached what is asked for, unless a method has a rule for the function, or the user treats the
function's result as the signal that it rounds.

Results that autograd can't differentiate at all may be converted to floating point later: integers
that a signal was cast to, and comparisons that are used as features. The trace then records a step
function of the signals. Where a signal only chooses, as an index, a mask or a gate does, its choice
is a constant.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.entries import Entry, entry_of
from captum_transformer.trace.functions import ENTRY
from captum_transformer.trace.kinds import CONVOLUTIONS, Form, Kind, Role
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.tape import Tape

MAY_STEP = frozenset({Kind.ENTRYWISE, Kind.UNKNOWN})
# Functions (by name) and integer types whose results are treated as the signal that they round.
STRAIGHT_THROUGH: set[Any] = set()
_MAPS = CONVOLUTIONS | {Kind.PRODUCT}
# Their results say how large a signal is, in steps; other integers and booleans say which it is.
_COUNT = frozenset({"bucketize", "searchsorted", "count_nonzero", "one_hot"}) | {
    f"{prefix}{name}" for prefix in ("", "bitwise_") for name in ("and", "or", "xor", "not")
}
# Their results without a derivative say where an entry was found, not what it is.
_CHOOSES = frozenset({Kind.CHOICE, Kind.MAXIMUM})
_CUTS_OFF = frozenset({"detach", "data"})
_OF_INTEGERS = (
    "If it is a linear layer with quantised activations, describe it with "
    "`captum_transformer.extend.describe_linear`, or keep the activations in floating point. To "
    "exclude the dependence, call `detach()` on its input."
)


class _Stepped(torch.autograd.Function):
    """A value that was computed from signals, with a derivative of zero."""

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
    """A value computed from integers or comparisons of signals, as one operation for the trace.

    Args:
        value: the computed value.
        name: the function that made these integers or comparisons.
        signals: the signals that they were made from.
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
    """Whether a function is a step function of one signal, according to the table."""
    of_one = "other" not in entry.parameters and entry.kind is Kind.ENTRYWISE
    return of_one and entry.form is Form.STEP


def _key(operation: Operation) -> Any:
    """Returns the key under which `STRAIGHT_THROUGH` may list an operation."""
    return operation.arguments.get("between", operation.name)


def goes_straight_through(operation: Operation) -> bool:
    """Whether the user treats an operation's result as the signal that it rounds."""
    return bool(STRAIGHT_THROUGH) and _key(operation) in STRAIGHT_THROUGH


def straight_through(operation: Operation) -> Any:
    """The rule for such operations: gives them the derivative of the identity."""
    ((signal, _),) = operation.traced()
    return _Through.apply(signal.tensor, operation)


class _Made(NamedTuple):
    """The origin of a tensor without a derivative.

    Attributes:
        signals: the signals that it was made from.
        name: the function that made it, and its module.
        counts: whether it says how large the signals are, and not merely which of them.
        cast: for a signal cast to integers, the version of the signal at that time; None otherwise.
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
        """Records the results of an operation on signals in a module that have no derivative."""
        signals = [value.holder() for _, value in operation.traced()]
        made = tuple(signal for signal in signals if signal is not None)
        if not made or operation.name in _CUTS_OFF or not torch.is_grad_enabled():
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
            if value is not None and not value.learned:
                made.append(_Made((tensor,), f"`{name}`", counts=name in _COUNT))
            elif (known := self._of(tensor)) is not None:
                made.append(known)
        self._join(made, result)

    def passed_on(self, operation: Operation, result: Any, written: Sequence[Tensor]) -> Any:
        """Records what a function returns or writes if its constants were made from signals.

        Returns:
            The step function to record instead and its arguments, or None if the result stays a
            constant.
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
        """Records results without a derivative that were made from others that are known."""
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
    """Whether it is a linear map of ``parts`` with weights that are not among them."""
    if operation.kind not in _MAPS:
        return False
    signals = [o for o in operation.operands if o.role is Role.SIGNAL or o.role is Role.WEIGHT]
    return any(o in parts for o in signals) and not all(o in parts for o in signals)


def of_integers(operation: Operation) -> UnsupportedOperationError:
    """The error for what was computed from integers or comparisons of signals."""
    if operation.traced()[0][1].holds_ids:
        return made_of_ids(operation)
    shapes = [tuple(value.shape) for _, value in operation.traced()]
    value: Operand = operation.arguments["weight"]
    return UnsupportedOperationError(
        f"What {operation.arguments['name']} makes of signals of shapes {shapes}, integers or "
        f"truth values, comes back as numbers of shape {tuple(value.size)}: they change in steps, "
        "so everything that the score depends on through them would get zero relevance. "
        + _OF_INTEGERS
    )


def made_of_ids(operation: Operation) -> UnsupportedOperationError:
    """The error for numbers that were computed from token ids without looking them up."""
    shapes = [tuple(value.shape) for _, value in operation.traced()]
    name = operation.arguments.get("name") or f"`{operation.name}`"
    return UnsupportedOperationError(
        f"{name} makes numbers of integers of shapes {shapes}. Integers are treated as token ids, "
        "whose relevance is that of the embeddings that are looked up by them, so everything that "
        "the score depends on through these numbers would get zero relevance. Pass numbers as "
        "floating point inputs, or look the ids up in a table. If they only say which tokens are "
        "there, as in a mask, compare them (`ids != 0`). To exclude the dependence, call "
        "`detach()` on the result."
    )
