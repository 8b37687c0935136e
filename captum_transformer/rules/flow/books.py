"""The books of a token flow: where shares start, what takes them and why, and where they end.

A share of several sources counts once for each of them. The account is about the inputs' shares;
those of an attention call's output end there, and what the call makes of them starts at its values.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.flow.maps import Attended
from captum_transformer.rules.ledger import Audit, Ledger, Taken, total
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value

# The value that a share goes to, the share's sources, and the share.
Piece = tuple[Value, int, Tensor]


class Kept(NamedTuple):
    """A part of a share that a rule passes on to no signal.

    Attributes:
        reason: what takes it; None if it is no part of the whole by the flow's definition.
        key: its sources, as a bit set.
        amount: its sum, for each sample if the samples are known.
        starts: whether it isn't kept, but starts anew.
    """

    reason: Reason | None
    key: int
    amount: Tensor
    starts: bool = False


class Books:
    """Records in a ledger what happens to shares.

    Args:
        ledger: the ledger to write to.
        wanted: the sources that the account is about.
    """

    def __init__(self, ledger: Ledger, wanted: int) -> None:
        self._ledger = ledger
        self._wanted = wanted

    def start(self, seeds: Mapping[Value, Tensor], keys: Mapping[Value, int]) -> None:
        """Records the shares that the flow starts with."""
        self._ledger.start(seeds)
        for value, share in seeds.items():
            self._ledger.count(share.sum(), keys[value].bit_count() - 1)

    def passed(
        self,
        operation: Operation,
        key: int,
        shares: Sequence[Tensor | None],
        pieces: Sequence[Piece],
        kept: Sequence[Kept],
        attended: Attended | None,
    ) -> None:
        """Records what an operation has passed on of some sources' shares, and what it keeps."""
        for reason, of, amount, starts in kept:
            if starts:
                self._ledger.count(amount, of.bit_count())
            else:
                self._keep(operation, reason, of, amount)
        if attended is not None:
            for share in shares:
                self._compare(operation, attended.read, share)
            for piece in [share for _, _, share in pieces] or [attended.keys]:
                self._compare(operation, attended.made, piece)
        elif isinstance(self._ledger, Audit):
            arrived = [share for share in shares if share is not None]
            away = [share.sum() * part.bit_count() for _, part, share in pieces]
            away += [one.amount.sum() * one.key.bit_count() for one in kept]
            size = sum(torch.linalg.vector_norm(share, 1) for share in arrived) * key.bit_count()
            before = sum(share.sum() for share in arrived) * key.bit_count()
            found = (torch.as_tensor(number) for number in (before, sum(away), size))
            self._ledger.compare(operation, *found)

    def _compare(self, operation: Operation, expected: Tensor, share: Tensor | None) -> None:
        if share is not None:
            size = torch.linalg.vector_norm(share, 1)
            self._ledger.compare(operation, expected, share.sum(), size)

    def leave_out(self, operation: Operation, pieces: Sequence[Piece]) -> None:
        """Records shares that have passed no attention and don't count.

        The pieces that go to one value were one share of several sources, so each entry counts
        once.
        """
        whole: dict[Value, tuple[int, Tensor]] = {}
        for value, key, share in pieces:
            before, largest = whole.get(value, (0, share))
            whole[value] = before | key, torch.maximum(largest, share)
            self._keep(None, None, key, share.sum())
        for value, (key, largest) in whole.items():
            if key & self._wanted:
                amount = total(value, largest)
                self._ledger.taken.append(Taken(operation, Reason.NO_ATTENTION, amount))
                self._ledger.started.append(amount.sum())

    def end(self, value: Value, source: int, key: int, share: Tensor) -> None:
        """Records a share that ends at a value; only the share of one source is asked for there."""
        if key & source:
            self._ledger.end(value, share)
        if further := key & ~source:
            self._keep(None, None, further, share.sum())

    def _keep(
        self, operation: Operation | None, reason: Reason | None, key: int, amount: Tensor
    ) -> None:
        counted = 0
        if operation is not None and reason is not None and key & self._wanted:
            # A token that no input is in has one share, however many inputs there are.
            counted = 1
            self._ledger.taken.append(Taken(operation, reason, amount))
        self._ledger.count(amount, counted - key.bit_count())
