"""Row normalisation where attention's output is added to tokens, in every way of adding it."""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.rules.flow.sources import Junction, Sources
from captum_transformer.rules.propagate import unsupported
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.derivatives import missing_ones_refused
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value
from captum_transformer.trace.walks import found_behind


class Layer(NamedTuple):
    """Attention calls side by side whose rows of ``I + A`` are normalised together.

    Attributes:
        calls: bit set of the outputs of the attention calls.
        base: bit set of the sources that these outputs are added to.
    """

    calls: int
    base: int


class Rows:
    """Finds the junction at which each layer is normalised: where it parts from its base.

    Args:
        tape: the traced forward pass.
    """

    def __init__(self, tape: Tape) -> None:
        self._sources = tape.derived(Sources)
        self.calls: dict[int, AttentionCall] = {
            operation.attention.output.index: operation.attention
            for operation in tape.operations
            if operation.attention is not None and not operation.attention.among_channels
        }
        self._at: dict[Operation, list[Layer]] = {}
        last: dict[int, Operation] = {}
        for operation in tape.operations:
            layers = self._added_at(operation)
            for layer in layers:
                for call in bits(layer.calls):
                    # A layer that is added one call after another is complete with the last one.
                    before = last.get(call)
                    if before is not None and not self._parts_at(operation, call):
                        self._at[before] = [
                            earlier for earlier in self._at[before] if not earlier.calls >> call & 1
                        ]
                    last[call] = operation
            if layers:
                self._at[operation] = layers

    def at(self, operation: Operation) -> Sequence[Layer]:
        """Returns the layers that are normalised where an operation's signals meet."""
        return self._at.get(operation, ())

    def between(self, parts: Sequence[int], shared: int = 0) -> list[Layer]:
        """Returns the layers with a call in one part of the sources and an older source outside."""
        held = Junction(tuple(parts), shared).held
        older = {call: self._older(call) & held for call in bits(held) if call in self.calls}
        bases = {
            older[call]
            for part in parts
            for call in bits(part)
            if call in older and older[call] & ~(part | shared) and not older[call] & shared
        }
        return [
            Layer(sum(1 << call for call in older if older[call] == base), base) for base in bases
        ]

    def tied(self, key: int) -> list[int]:
        """Groups sources that layers add to each other, and therefore normalise together."""
        found: list[int] = []
        for source in bits(key):
            own = 1 << source | (self._older(source) & key if source in self.calls else 0)
            apart = [other for other in found if not other & own]
            found = [*apart, functools.reduce(operator.or_, (o for o in found if o & own), own)]
        return found

    def beside_learned(self, operation: Operation, branch: Value) -> int:
        """Returns the calls whose results are added to the learned tokens that attended.

        A class token that has met no input yet is a constant, but a row like any other.
        """
        constants = [operand for operand in operation.operands if operand.value is None]
        if operation.kind is not Kind.ADD or len(constants) != 1:
            return 0
        held = bits(self._sources.held(branch))
        calls = [call for call in held if call in self.calls]
        return sum(
            1 << call for call in calls if _joined(query_value(self.calls[call]), constants[0])
        )

    def _older(self, call: int) -> int:
        return self.calls[call].output.ancestors

    def _added_at(self, operation: Operation) -> list[Layer]:
        junction = self._sources.junction(operation)
        if junction is None or sum(map(bool, junction.whole)) + bool(junction.shared) < 2:
            return []
        return self.between(junction.whole, junction.shared)

    def _parts_at(self, operation: Operation, call: int) -> bool:
        junction = self._sources.junction(operation)
        if junction is None:
            return False
        own = next((part for part in junction.whole if part >> call & 1), junction.shared)
        return bool(self._older(call) & junction.held & ~(own | junction.shared))


class NormalisedRows:
    """Divides shares by the sums of the rows of ``I + A``.

    Args:
        tape: the traced forward pass.
        sums: returns the sum of each row of a call's map, ``(..., Q)``.
        active: bit set of the calls that contribute.
        reached: returns the shares that reach some values from others, by skips alone.
    """

    def __init__(
        self,
        tape: Tape,
        sums: Callable[[AttentionCall], Tensor],
        active: int,
        reached: Callable[[Mapping[Value, Tensor], Sequence[Value]], dict[Value, Tensor]],
    ) -> None:
        self._rows = tape.derived(Rows)
        self._sums = sums
        self._active = active
        self._reached = reached
        # The last result: shares of several sources come to an operation one after another.
        self._last: tuple[Operation, int, Tensor] | None = None

    def met(self, operation: Operation, key: int, share: Tensor) -> list[tuple[int, Tensor]]:
        """Normalises a share, by its sources, where several signals meet."""
        return self._divided(self._rows.at(operation), operation, key, share)

    def tied(self, key: int) -> list[int]:
        """Groups sources whose shares are normalised together."""
        return self._rows.tied(key)

    def whole(self, groups: Sequence[int], key: int) -> int:
        """Returns the sources of rows that are whole in each of several signals, such as towers.

        Args:
            groups: the sources that each signal holds.
            key: the sources that are asked for.
        """
        parted = functools.reduce(operator.or_, (of.calls for of in self._rows.between(groups)), 0)
        found = 0
        for tied in self.tied(key & ~parted):
            own = [group & tied for group in groups]
            pairs = itertools.combinations(own, 2)
            if any(one & other not in (0, one, other) for one, other in pairs):
                found |= tied
        return found

    def parted(
        self, operation: Operation, parts: Sequence[int], key: int, share: Tensor
    ) -> list[tuple[int, Tensor]]:
        """Normalises a share, by its sources, where different features hold different sources."""
        return self._divided(self._rows.between(parts), operation, key, share)

    def beside_learned(self, operation: Operation, value: Value, share: Tensor) -> Tensor:
        """Normalises a share where attention is added to the learned tokens that attended."""
        calls = self._rows.beside_learned(operation, value) & self._active
        return share / (1 + self._sums_at(operation, calls, share)) if calls else share

    def require_together(
        self,
        operation: Operation,
        holding: Sequence[tuple[int, Tensor | None]],
        dims: Sequence[int],
    ) -> None:
        """Refuses attention to tokens whose features are other attention and what it reads.

        Args:
            operation: the attention.
            holding: the sources of the value that it attends to, and where each of them is.
            dims: the feature dimensions of that value.

        Raises:
            UnsupportedOperationError: if rows of a layer are in several parts of a token.
        """
        if len(holding) < 2 or not self._rows.between([own for own, _ in holding]):
            return
        # Tokens that hold different sources, as of several modalities, have rows of their own.
        parts = [own for own, present in holding if _is_of_some(present, list(dims))]
        if len(parts) > 1 and self._rows.between(parts):
            raise unsupported(
                operation,
                "some features of what it attends to are the result of other attention and some "
                "are not, and no layer has mixed them: a token there has no row of its own",
            )

    def _divided(
        self, layers: Sequence[Layer], operation: Operation, key: int, share: Tensor
    ) -> list[tuple[int, Tensor]]:
        pieces = [(key, share)]
        for calls, base in layers:
            # Where a skip goes around several layers, they have parted from it there.
            if (calls | base) & ~key or not calls & self._active:
                continue
            total = 1 + self._sums_at(operation, calls & self._active, share)
            pieces = [
                (part, piece / divisor)
                for whole, piece in pieces
                for part, divisor in ((whole & (calls | base), total), (whole & ~(calls | base), 1))
                if part
            ]
        return pieces

    def _sums_at(self, operation: Operation, calls: int, like: Tensor) -> Tensor:
        """Returns the calls' row sums, carried forward to where their branch meets the skip.

        Carrying forward is the adjoint of carrying backward: the derivative, with respect to a
        share there, of the row sums weighted by the shares that reach the calls.
        """
        if self._last is not None and self._last[:2] == (operation, calls):
            return self._last[2]
        output = next(value for value in operation.outputs if value is not None)
        made = {call.output: call for call in map(self._rows.calls.__getitem__, bits(calls))}
        probe = torch.zeros(output.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            reached = self._reached({output: probe}, list(made))
            total = torch.zeros((), dtype=like.dtype, device=like.device)
            for value, call in made.items():
                sums = self._sums(call).detach()
                total = total + (call.outputs(reached[value]).sum(-1) * sums).sum()
        with missing_ones_refused():
            (sums,) = torch.autograd.grad(total, probe)
        self._last = operation, calls, sums
        return sums


def together(counted: Sequence[Sequence[Tensor | int]], like: Tensor) -> Sequence[Tensor | int]:
    """Returns weights to divide rows among signals, from how many terms of each hold sources.

    Rows go to the signals that hold all of their sources, or to all signals if none does.
    """
    if all(isinstance(number, int) and number for numbers in counted for number in numbers):
        return counted[0]
    of_signals = [
        torch.stack([torch.ones_like(like) * number for number in numbers])
        for numbers in zip(*counted, strict=True)
    ]
    most = torch.stack([numbers.amax(0) for numbers in of_signals])
    every = most * torch.stack([(numbers != 0).all(0) for numbers in of_signals])
    # Learned tokens that were joined to the others have none of them.
    found = torch.where(most.sum(0) == 0, torch.ones_like(most), most)
    return list(torch.where(every.sum(0) == 0, found, every))


def bits(found: int) -> Iterator[int]:
    """Yields the indices in a bit set."""
    while found:
        lowest = found & -found
        yield lowest.bit_length() - 1
        found ^= lowest


def _joined(value: Value | None, constant: Operand) -> bool:
    """Returns whether a value was made by joining a constant, such as a class token, to signals."""

    def joins(value: Value) -> list[Value] | bool:
        operation = value.operation
        if operation is None or operation.attention is not None:
            return False
        traced = [source for _, source in operation.traced()]
        if operation.kind in MOVES:
            others = [o for o in operation.operands if o.value is None and o.size == constant.size]
            if any(o.tensor.data_ptr() == constant.tensor.data_ptr() for o in others):
                return True
        return traced if len(traced) == 1 or operation.kind in MOVES else False

    return value is not None and any(found_behind(value, joins))


def _is_of_some(present: Tensor | None, features: list[int]) -> bool:
    """Returns whether a mask is nonzero for some features of a token and zero for others."""
    if present is None or not features:
        return False
    held = (present != 0).float()
    some = (held.amin(features) != held.amax(features)).any()
    return truth(some, "whether a mask leaves out some features of a token")
