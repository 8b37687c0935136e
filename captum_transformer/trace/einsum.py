"""Equations of ``torch.einsum``, with a letter for every dimension."""

import string
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def written_out(equation: str, ndims: Sequence[int]) -> str:
    """The equation with letters in the place of dots, and with its output.

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


def with_letters(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an einsum with its equation written out."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or not all(isinstance(o, Tensor) for o in operands):
        return args
    return (written_out(equation, [operand.ndim for operand in operands]), *operands)
