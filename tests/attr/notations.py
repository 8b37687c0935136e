"""Attention models whose parts are drawn, each of which may be written in several notations.

Tensors have a letter for each dimension, so that a notation may lay out its results as it likes:
b samples, n tokens that attend, m tokens that are attended to, g groups of heads, h heads of a
group, d features of a head, e features of a token, f hidden features, x experts, w windows, c
classes.
"""

import functools
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.attr.ways import WAYS

SIZES = {"b": 2, "n": 4, "m": 4, "g": 2, "h": 2, "d": 4, "e": 6, "f": 5, "x": 3, "w": 2, "c": 3}


class Named(NamedTuple):
    """A tensor with a letter for each dimension."""

    tensor: Tensor
    letters: str

    def dim(self, letter: str) -> int:
        return self.letters.index(letter)

    def to(self, letters: str) -> Tensor:
        """The tensor with its dimensions in another order, those that it lacks of size one."""
        own = [c for c in letters if c in self.letters]
        tensor = self.tensor.permute([self.dim(c) for c in own])
        for place, c in enumerate(letters):
            if c not in self.letters:
                tensor = tensor.unsqueeze(place)
        return tensor

    def by_entry(self, function: Callable[[Tensor], Tensor]) -> "Named":
        return Named(function(self.tensor), self.letters)

    def renamed(self, old: str, new: str) -> "Named":
        return Named(self.tensor, self.letters.replace(old, new))


class Notation:
    """Draws how each part is written; the first way of each is the plain one.

    Args:
        seed: what is drawn from; None for the plain notation.
        plain: draws that are the plain ones nevertheless.

    Attributes:
        drawn: the draws that aren't plain, by the part and how often it was drawn before.
    """

    def __init__(self, seed: int | None, plain: frozenset[str] = frozenset()) -> None:
        self.seed, self.plain = seed, plain
        self.drawn: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()

    def _draw(self, part: str, plain: Any, draw: Callable[[random.Random], Any]) -> Any:
        name = f"{part} {self.counts[part]}"
        self.counts[part] += 1
        if self.seed is None or part in self.plain or name in self.plain:
            return plain
        found = draw(random.Random(zlib.crc32(f"{self.seed} {name}".encode())))
        if found != plain:
            self.drawn[name] = found
        return found

    def choice(self, part: str, ways: Sequence[Any]) -> Any:
        """One of several ways to write a part."""
        return ways[self._draw(part, 0, lambda chance: chance.randrange(len(ways)))]

    def order(self, part: str, letters: str) -> str:
        """The letters in some order."""
        return self._draw(
            part, letters, lambda chance: "".join(chance.sample(letters, len(letters)))
        )

    def __getattr__(self, part: str) -> Callable[..., Any]:
        return self.choice(part, WAYS[part])

    def aligned(self, part: str, one: Named, other: Named) -> Named:
        """An operation on the entries of two tensors, the second broadcast."""
        letters = one.letters
        return Named(getattr(self, part)(one.to(letters), other.to(letters)), letters)

    def moved(self, x: Named, letters: str) -> Named:
        """With its dimensions in this order."""
        dims = [x.dim(c) for c in letters]
        return Named(self.permute(x.tensor, dims), letters) if letters != x.letters else x

    def along(self, x: Named, letter: str, part: str, *more: Any) -> Named:
        """A function along a dimension."""
        return Named(getattr(self, part)(x.tensor, x.dim(letter), *more), x.letters)

    def contract(self, a: Named, b: Named, out: str) -> Named:
        """The product of two signals, summed over letters that the output lacks."""
        return self.choice("contract", CONTRACTIONS)(self, a, b, self.order("layout", out))

    def applied(self, x: Named, weight: Named, out: str) -> Named:
        """The product of a signal and constants."""
        return self.choice("applied", LAYERS)(self, x, weight, self.order("layout", out))

    def unflatten(self, x: Named, letter: str, into: str) -> Named:
        """Several dimensions in place of one."""
        if not into:
            return Named(x.tensor.squeeze(x.dim(letter)), x.letters.replace(letter, ""))
        sizes = [-1 if c == "n" else SIZES[c] for c in into]
        tensor = self.split(x.tensor, x.dim(letter), sizes) if len(into) > 1 else x.tensor
        return Named(tensor, x.letters.replace(letter, into))

    def flatten(self, x: Named, letters: str, into: str) -> Named:
        """One dimension, the last one, in place of several."""
        rest = "".join(c for c in x.letters if c not in letters)
        x = self.moved(x, rest + letters)
        return Named(self.merge(x.tensor, len(rest)), rest + into)


def _by_einsum(_: Notation, a: Named, b: Named, out: str) -> Named:
    return Named(torch.einsum(f"{a.letters},{b.letters}->{out}", a.tensor, b.tensor), out)


def _by_einsum_of_last(_: Notation, a: Named, b: Named, out: str) -> Named:
    return Named(torch.einsum(f"{b.letters},{a.letters}->{out}", b.tensor, a.tensor), out)


def _roles(a: Named, b: Named, out: str) -> tuple[str, str, str, str]:
    """The letters of the batch, of each factor's rows, and those that are summed."""
    batch = "".join(c for c in out if c in a.letters and c in b.letters)
    rows = "".join(c for c in out if c not in b.letters)
    columns = "".join(c for c in out if c not in a.letters)
    return batch, rows, columns, "".join(c for c in a.letters if c not in out)


def _by_matmul(n: Notation, a: Named, b: Named, out: str, *, constant: bool = False) -> Named:
    """A product of matrices, with rows, columns or batch dimensions merged if there are more."""
    batch, rows, columns, summed = _roles(a, b, out)
    if len(rows) > 1 and n.choice("broadcast", (True, False)):
        batch, rows = batch + rows[:-1], rows[-1]
    if len(columns) > 1 and n.choice("broadcast", (True, False)):
        batch, columns = batch + columns[:-1], columns[-1]
    sizes = {c: t.shape[i] for t, letters in (a, b) for i, c in enumerate(letters)}
    left, right = a.to(batch + rows + summed), b.to(batch + summed + columns)
    lead = len(batch)
    left = left.reshape(*left.shape[:lead], math.prod(sizes[c] for c in rows), -1)
    right = right.reshape(*right.shape[:lead], -1, math.prod(sizes[c] for c in columns))
    product = n.choice("matmul", WAYS["matmul"][: -2 if constant else None])(left, right)
    product = product.reshape([sizes[c] for c in batch + rows + columns])
    return n.moved(Named(product, batch + rows + columns), out)


def _by_products(n: Notation, a: Named, b: Named, out: str) -> Named:
    summed = _roles(a, b, out)[3]
    letters = n.order("layout of products", out + summed)
    product = Named(n.product(a.to(letters), b.to(letters)), letters)
    dims = [letters.index(c) for c in summed]
    left = "".join(c for c in letters if c not in summed)
    return n.moved(Named(n.total(product.tensor, dims), left), out)


def _in_chunks(n: Notation, a: Named, b: Named, out: str) -> Named:
    """For some of the tokens that attend, and then for the others."""
    if "n" not in out or "n" in b.letters:
        return _by_matmul(n, a, b, out)
    parts = a.tensor.tensor_split([1], a.dim("n"))
    made = [_by_einsum(n, Named(part, a.letters), b, out).tensor for part in parts]
    return Named(torch.cat(made, out.index("n")), out)


CONTRACTIONS = [_by_matmul, _by_einsum, _by_einsum_of_last, _by_products, _in_chunks]
LAYERS = [
    functools.partial(_by_matmul, constant=True),
    _by_einsum,
    _by_einsum_of_last,
    _by_products,
]
