"""Where the relevance of a score goes: how much reaches the inputs, and what takes the rest."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Account", "Part", "Reason"]

INPUTS = "inputs"
# As a fraction of the total; smaller parts get no line in the table.
SMALLEST = 5e-4


class Reason(enum.Enum):
    """Why relevance reaches no input."""

    BIAS = "biases"
    ADDED = "added constants"  # position embeddings, masks, labels
    JOINED = "joined constants"  # learned tokens such as a class token, prompts
    FILLED = "masked or padded entries"
    CONSTANT = "other constants"  # what a signal is compared with, learned values
    EPSILON = "vanishing denominators"
    NO_ATTENTION = "what passes no attention"
    ELSEWHERE = "what no input is in"
    ACTIVATION = "activations"
    REST = "the rest"

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Part:
    """The part of the relevance that one operation or input gets.

    Attributes:
        taker: ``"inputs"``, or the reason why the part reaches no input.
        source: the name of the input; or the parameter, or module and operation, that takes it.
        amount: the amount for each sample, or for all together if they can't be separated.
    """

    taker: str
    source: str
    amount: Tensor


@dataclass(frozen=True)
class Account:
    """Where the relevance of a call went.

    All parts add up to the total, up to rounding. If a part is negative, the others add up to
    more than the total.

    Attributes:
        method: the method whose relevance it is.
        total: the total relevance of each sample: one, or the score.
        parts: the parts of the relevance, and what they go to.

    Example:
        >>> parts = (
        ...     Part("inputs", "image", torch.tensor([0.7, 0.8])),
        ...     Part("added constants", "pos_embed", torch.tensor([0.3, 0.2])),
        ... )
        >>> account = Account("LRP", torch.ones(2), parts)
        >>> print(account)
        LRP: where the relevance went, mean of 2 samples
        total                1.0000   100.0 %
        inputs               0.7500    75.0 %
        added constants      0.2500    25.0 %
          pos_embed          0.2500    25.0 %
        >>> account.share("inputs")
        0.75
        >>> account.of("inputs")
        tensor([0.7000, 0.8000])
    """

    method: str
    total: Tensor
    parts: tuple[Part, ...]

    def of(self, taker: str) -> Tensor:
        """Returns a taker's amount ``(samples,)``; a scalar if samples can't be separated."""
        return self._sum([part.amount for part in self.parts if part.taker == taker])

    def share(self, taker: str) -> float:
        """Returns a taker's share of the total over all samples; NaN if the total is zero."""
        return self._shares({taker: float(self.of(taker).sum())})[taker]

    def shares(self, *, by_source: bool = False) -> dict[str, float]:
        """Returns the shares of the total that went to the inputs and each reason, largest first.

        If the total is zero, the shares are NaN.

        Args:
            by_source: list modules and parameters separately: ``"added constants: pos_embed"``.
        """
        return self._shares(self._amounts(by_source=by_source))

    @property
    def delta(self) -> Tensor:
        """The deviation from conservation: the relevance of the inputs minus the total."""
        missing = [-part.amount for part in self.parts if part.taker != INPUTS]
        return self._sum(missing)

    def __sub__(self, other: "Account") -> "Account":
        """Returns the account of the difference of two scores, part by part."""
        less = (replace(part, amount=-part.amount) for part in other.parts)
        return replace(self, total=self.total - other.total, parts=(*self.parts, *less))

    def __str__(self) -> str:
        count = self.total.numel()
        total = float(self.total.sum())
        rows = [("total", total), *self._rows(total)]
        width = max(len(name) for name, _ in rows)
        samples = f"mean of {count} samples" if count > 1 else "one sample"
        lines = [
            f"{name:<{width}}  {amount / count:>9.4f} {_percent(amount, total):>9}"
            for name, amount in rows
        ]
        return "\n".join([f"{self.method}: where the relevance went, {samples}", *lines])

    def _rows(self, total: float, most: int = 5) -> list[tuple[str, float]]:
        """Returns the lines of the table, each with its amount; very small parts are left out."""
        rows = []
        by_source = self._amounts(by_source=True)
        scale = abs(total) or max(map(abs, by_source.values()), default=0.0)
        for taker, amount in self._amounts(by_source=False).items():
            prefix = f"{taker}: "
            inner = [
                (f"  {name.removeprefix(prefix)}", of_source)
                for name, of_source in by_source.items()
                if name.startswith(prefix) and abs(of_source) >= SMALLEST * scale
            ]
            if taker != INPUTS and not inner:
                continue
            rows.append((taker, amount))
            if taker == INPUTS and len(inner) == 1:
                continue
            rows += inner[:most]
            if len(inner) > most:
                rest = sum(of_source for _, of_source in inner[most:])
                rows.append((f"  {len(inner) - most} more", rest))
        return rows

    def _amounts(self, *, by_source: bool) -> dict[str, float]:
        """Returns the amounts over all samples: the inputs first, then the largest first."""
        sums: dict[str, Tensor] = {}
        zero = torch.zeros_like(self.total.sum())
        for part in self.parts:
            name = f"{part.taker}: {part.source}" if by_source else part.taker
            sums[name] = sums.get(name, zero) + part.amount.sum().to(zero)
        if not sums:
            return {}
        amounts = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        some = [a for a in amounts.items() if a[1] or a[0].startswith(INPUTS)]
        return dict(sorted(some, key=lambda a: (not a[0].startswith(INPUTS), -abs(a[1]))))

    def _shares(self, amounts: Mapping[str, float]) -> dict[str, float]:
        total = float(self.total.sum())
        return {name: _share(amount, total) for name, amount in amounts.items()}

    def _sum(self, amounts: Sequence[Tensor]) -> Tensor:
        if any(amount.shape != self.total.shape for amount in amounts):
            amounts = [amount.sum() for amount in amounts]
        zero = torch.zeros_like(self.total)
        return sum(
            (a.to(zero) for a in amounts), zero if not amounts or amounts[0].ndim else zero.sum()
        )


def joined(accounts: Sequence[Account]) -> Account:
    """Joins the accounts of several batches of samples."""
    first, *others = accounts
    if not others:
        return first
    keys = dict.fromkeys((part.taker, part.source) for a in accounts for part in a.parts)
    parts = []
    for key in keys:
        amounts = [
            a._sum([part.amount for part in a.parts if (part.taker, part.source) == key])  # noqa: SLF001
            for a in accounts
        ]
        parts.append(Part(*key, _of_all(amounts)))
    return replace(first, total=_of_all([a.total for a in accounts]), parts=tuple(parts))


def _of_all(amounts: Sequence[Tensor]) -> Tensor:
    """Concatenates the amounts of samples; sums them if some samples can't be separated."""
    if all(amount.ndim for amount in amounts):
        return torch.cat(list(amounts))
    return torch.stack([amount.sum() for amount in amounts]).sum()


def _share(amount: float, total: float) -> float:
    return amount / total if total else math.nan


def _percent(amount: float, total: float) -> str:
    return f"{100 * amount / total:.1f} %" if total else "-"
