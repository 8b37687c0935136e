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
from captum_transformer.rules.ledger import Audit, Ledger, Taken
from captum_transformer.trace.operation import Operation, Value

# Where a share goes, the sources that it is of, and the share.
Piece = tuple[Value, int, Tensor]


class Kept(NamedTuple):
    """What a rule hands on to nobody.

    Attributes:
        reason: what takes it; None if by the flow's definition it is no part of the whole.
        key: the sources that it is of.
        amount: the sum of it, for each sample if they are known.
    """

    reason: Reason | None
    key: int
    amount: Tensor


class Books:
    """Writes into a ledger what becomes of shares.

    Args:
        ledger: what is written.
        wanted: the sources that the account is about.
    """

    def __init__(self, ledger: Ledger, wanted: int) -> None:
        self._ledger = ledger
        self._wanted = wanted

    def start(self, seeds: Mapping[Value, Tensor], keys: Mapping[Value, int]) -> None:
        """Notes the shares that there are at first."""
        self._ledger.start(seeds)
        for value, share in seeds.items():
            self._ledger.started.append(share.sum() * (keys[value].bit_count() - 1))

    def passed(
        self,
        operation: Operation,
        key: int,
        shares: Sequence[Tensor | None],
        pieces: Sequence[Piece],
        kept: Sequence[Kept],
        attended: Attended | None,
    ) -> None:
        """Notes what an operation has handed on of some sources' shares, and what it keeps."""
        for reason, of, amount in kept:
            self._keep(operation, reason, of, amount)
        if attended is None and not isinstance(self._ledger, Audit):
            return
        arrived = _sums([(key, share) for share in shares if share is not None])
        handed = _sums([(part, share) for _, part, share in pieces])
        taken = [(reason, amount.sum() * of.bit_count()) for reason, of, amount in kept]
        if attended is None:
            away = handed[0] + sum(amount for _, amount in taken)
            self._ledger.compare(operation, arrived[0], away, arrived[1] + handed[1])
        else:
            made = handed[0] + sum(amount for reason, amount in taken if reason is not None)
            self._ledger.compare(operation, arrived[0], attended.read, arrived[1])
            self._ledger.compare(operation, attended.made, made, attended.made.abs() + handed[1])

    def end(self, value: Value, source: int, key: int, share: Tensor) -> None:
        """Notes that a value is reached, where something of one source is asked for."""
        if key & source:
            self._ledger.end(value, share)
        self._keep(None, None, key & ~source, share.sum())

    def _keep(
        self, operation: Operation | None, reason: Reason | None, key: int, amount: Tensor
    ) -> None:
        counted = 0
        if operation is not None and reason is not None and key & self._wanted:
            # A token that no input is in has one share, however many inputs there are.
            counted = 1
            self._ledger.taken.append(Taken(operation, reason, amount))
        self._ledger.started.append(amount.sum() * (counted - key.bit_count()))


def _sums(shares: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """What some shares come to, and their absolute values."""
    sums = [share.sum() * key.bit_count() for key, share in shares]
    sizes = [torch.linalg.vector_norm(share, 1) * key.bit_count() for key, share in shares]
    if not sums:
        return torch.zeros(()), torch.zeros(())
    return torch.stack(sums).sum(), torch.stack(sizes).sum()
