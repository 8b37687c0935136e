"""Matrix products of all spellings as an einsum, with a letter for each dimension.

``F.linear``, ``@``, ``torch.addmm``, ``torch.einsum`` and similar functions differ in the order of
their factors and in the dimensions that they sum over. With letters, rules need only the latter.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from captum_transformer.trace.operation import Operand, Operation


class Contraction(NamedTuple):
    """A product of factors that is summed over some of their dimensions.

    Attributes:
        factors: the tensors that are multiplied.
        letters: for each factor, a string with one letter per dimension.
        output: the letters of the output's dimensions.
        addend: the operand that is added to the product, or None.
    """

    factors: "tuple[Operand, ...]"
    letters: tuple[str, ...]
    output: str
    addend: "Operand | None" = None

    def of(self, operand: "Operand") -> str:
        """Returns the letters of a factor, or an empty string if the operand is not a factor."""
        for factor, letters in zip(self.factors, self.letters):  # noqa: B905 - this is faster
            if factor is operand:
                return letters
        return ""

    def summed(self, operand: "Operand") -> list[int]:
        """Returns the dimensions of a factor that are summed over."""
        return _missing(self.of(operand), self.output)

    def made(self, operand: "Operand") -> list[int]:
        """Returns the dimensions of the output that a factor does not have, or has as size one."""
        own = self.of(operand)
        if 1 not in operand.size or not own:
            return _missing(self.output, own)
        return _longer(self.output, own, operand.size, *self._others(operand))

    def shared(self, operand: "Operand") -> list[int]:
        """Returns the dimensions of a factor along which it meets others entry by entry.

        Over a dimension of size one, a factor is the same for all entries of the others.
        """
        if not (own := self.of(operand)):
            return []  # of what is added to the product
        met = _met(self.output, *self._others(operand))
        lengths = zip(own, operand.size, strict=True)
        return [
            d for d, (c, n) in enumerate(lengths) if c in met and (n > 1 or c not in self.output)
        ]

    def _others(self, operand: "Operand") -> tuple[tuple[str, ...], tuple[Sequence[int], ...]]:
        """Returns the letters and sizes of the other factors."""
        places = [place for place, factor in enumerate(self.factors) if factor is not operand]
        letters = tuple([self.letters[place] for place in places])
        return letters, tuple([self.factors[place].size for place in places])

    def moved(self, operand: "Operand", dim: int) -> int | None:
        """Returns where a dimension of a factor is in the output, or None if it is summed over."""
        place = self.output.find(self.of(operand)[dim])
        return None if place < 0 else place


# The layers of a model repeat the same queries, so results are cached.
@lru_cache(maxsize=4096)
def _missing(letters: str, output: str) -> list[int]:
    return [dim for dim, letter in enumerate(letters) if letter not in output]


@lru_cache(maxsize=4096)
def _met(output: str, terms: tuple[str, ...], sizes: tuple[Sequence[int], ...]) -> frozenset[str]:
    """Returns the letters of some factors that are summed over or longer than one."""
    dims = (
        pair for of, size in zip(terms, sizes, strict=True) for pair in zip(of, size, strict=True)
    )
    return frozenset(c for c, n in dims if n > 1 or c not in output)


@lru_cache(maxsize=4096)
def _longer(
    output: str,
    own: str,
    size: Sequence[int],
    terms: tuple[str, ...],
    sizes: tuple[Sequence[int], ...],
) -> list[int]:
    """Returns the dimensions of an output that a factor does not have, or has as size one."""
    met = _met(output, terms, sizes)
    short = {c for c, n in zip(own, size, strict=True) if n == 1 and c in met}
    return [dim for dim, c in enumerate(output) if c not in own or c in short]


@lru_cache(maxsize=4096)
def _split(equation: str) -> tuple[tuple[str, ...], str] | None:
    """Returns the terms and the output of an equation, or None if it takes a diagonal."""
    left, _, output = equation.partition("->")
    terms = tuple(left.split(","))
    repeats = any(len(set(term)) < len(term) for term in (*terms, output))
    return None if repeats else (terms, output)


def contraction(operation: "Operation") -> Contraction | None:
    """Returns the contraction that a product computes, or None if it takes a diagonal."""
    usual = _linear if "weight" in operation.arguments else _matmul
    spelling = _SPELLINGS.get(operation.name, usual)
    factors, equation = spelling(operation.arguments)
    found = _split(equation)
    if found is None:
        return None
    return Contraction(tuple(factors), *found, operation.arguments.get("bias"))


Spelling = Callable[[Mapping[str, Any]], "tuple[Sequence[Operand], str]"]
_BATCH = string.ascii_uppercase


def _two(arguments: Mapping[str, Any]) -> "tuple[Operand, Operand]":
    return arguments["input"], arguments["other"]


def _linear(arguments: Mapping[str, Any]) -> "tuple[Sequence[Operand], str]":
    signal, weight = arguments["input"], arguments["weight"]
    return (signal, weight), _of_layer(len(signal.size), len(weight.size))


@lru_cache(maxsize=4096)
def _of_layer(ndim: int, of_weight: int) -> str:
    batch, out = _BATCH[: ndim - 1], "o" * (of_weight - 1)
    return f"{batch}i,{out}i->{batch}{out}"


def _matmul(arguments: Mapping[str, Any]) -> "tuple[Sequence[Operand], str]":
    left, right = _two(arguments)
    rows, columns = "m" * (len(left.size) > 1), "n" * (len(right.size) > 1)
    batches = [max(len(factor.size) - 2, 0) for factor in (left, right)]
    batch = _BATCH[: max(batches)]
    of_left, of_right = (batch[len(batch) - count :] for count in batches)
    return (left, right), f"{of_left}{rows}k,{of_right}k{columns}->{batch}{rows}{columns}"


def _entries(arguments: Mapping[str, Any]) -> "tuple[Sequence[Operand], str]":
    left, right = _two(arguments)
    ndim = max(len(factor.size) for factor in (left, right, arguments["bias"]))
    terms = (_BATCH[ndim - len(factor.size) : ndim] for factor in (left, right))
    return (left, right), f"{','.join(terms)}->{_BATCH[:ndim]}"


def _tensordot(arguments: Mapping[str, Any]) -> "tuple[Sequence[Operand], str]":
    left, right = _two(arguments)
    a, b = len(left.size), len(right.size)
    dims = arguments.get("dims", 2)
    if "dims_self" in arguments:  # the kernel's names of these arguments
        dims = arguments["dims_self"], arguments["dims_other"]
    pairs = (range(a - dims, a), range(dims)) if isinstance(dims, int) else dims
    ours, theirs = list(_BATCH[:a]), list(string.ascii_lowercase[:b])
    for i, j in zip(*pairs, strict=True):
        theirs[j] = ours[i]
    summed = {ours[i] for i in pairs[0]}
    out = [letter for letter in (*ours, *theirs) if letter not in summed]
    return (left, right), f"{''.join(ours)},{''.join(theirs)}->{''.join(out)}"


def _einsum(arguments: Mapping[str, Any]) -> "tuple[Sequence[Operand], str]":
    operands = arguments["operands"]
    return operands, written_out(arguments["equation"], [len(o.size) for o in operands])


def _fixed(equation: str, other: str = "other") -> Spelling:
    return lambda arguments: ((arguments["input"], arguments[other]), equation)


def _bilinear(arguments: Mapping[str, Any]) -> "tuple[Sequence[Operand], str]":
    left, right = _two(arguments)
    batch = _BATCH[: len(left.size) - 1]
    equation = f"{batch}i,{batch}j,oij->{batch}o"
    return (left, right, arguments["weight"]), equation


def _grouped(arguments: Mapping[str, Any]) -> "tuple[Sequence[Operand], str]":
    """Rows that are each multiplied by the matrix of their group, such as a token's expert."""
    signal = arguments["input"]
    weights = arguments["other"] if "other" in arguments else arguments["weight"]
    return (signal, weights), "ti,gio->to" if len(weights.size) == 3 else "ti,io->to"


# All other products are handled as `F.linear` if they have a weight, or else as `torch.matmul`.
_SPELLINGS: dict[str, Spelling] = {
    "addbmm": _fixed("Amk,Akn->mn"),
    **dict.fromkeys(("outer", "ger", "addr"), _fixed("m,n->mn")),
    "addcmul": _entries,
    "tensordot": _tensordot,
    "einsum": _einsum,
    "weighted sum": lambda arguments: (arguments["operands"], arguments["equation"]),
    "bilinear": _bilinear,
    **dict.fromkeys(("grouped_mm", "grouped_mm_fallback"), _grouped),
}


def written_out(equation: str, ndims: Sequence[int]) -> str:
    """Returns the equation of an einsum with letters for the ellipsis, and with its output.

    >>> written_out("...qk,...kd->...qd", [4, 3])
    'ABqk,Bkd->ABqd'
    >>> written_out("bij, bjk", [3, 3])
    'bij,bjk->ik'
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    used = {letter for letter in equation if letter.isalpha()}
    free = [letter for letter in string.ascii_letters if letter not in used]
    free.sort(key=str.islower)
    hidden = [
        ndim - len(term.replace("...", "")) if "..." in term else 0
        for term, ndim in zip(terms, ndims, strict=True)
    ]
    dots = "".join(free[: max(hidden)])
    if not arrow:
        named = "".join(sorted(used))
        out = "..." + "".join(letter for letter in named if left.count(letter) == 1)
    terms = [
        term.replace("...", dots[len(dots) - count :])
        for term, count in zip(terms, hidden, strict=True)
    ]
    return f"{','.join(terms)}->{out.replace('...', dots)}"
