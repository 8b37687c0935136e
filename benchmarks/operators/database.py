"""The operators that torch tests itself with, as functions that can be explained."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# On import torch forbids the whole process to set `torch.backends` flags, which others still do.
with patch.object(torch.backends, "disable_global_flags"):
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import OpInfo

# Some of the samples, spread over all that there are: neighbours differ least.
_SAMPLES, _LOOKED_AT, _ENTRIES = 3, 400, 20_000
_SEED = 1234
# Only evaluation mode is explained.
_TRAINING = {"training": False, "train": False, "dropout_p": 0.0}

_RANDOM = "its values are drawn at random, and have no derivative"
_SPARSE = "its result is sparse"
_ZERO = "all its results are zero: there is nothing to share out"
LEFT_OUT = {
    "__rpow__": "none of its samples has a derivative: powers of numbers below zero",
    "bernoulli": _RANDOM,
    "linalg.eig": "eigenvectors have a phase that is chosen at will, so scores have no derivative",
    "linalg.norm.subgradients_at_zero": _ZERO,
    "normal": _RANDOM,
    "normal.number_mean": _RANDOM,
    "round.decimals_neg_3": _ZERO,
    "sparse.sampled_addmm": _SPARSE,
    "to_sparse": _SPARSE,
    "zero_": _ZERO,
}


@dataclass(frozen=True, eq=False)
class Case:
    """An operator at some operands: a model of one sample, with a score.

    Attributes:
        operator: the torch function.
        leaves: all operands, and all other arguments.
        structure: how the leaves are passed.
        operands: which of the leaves could be explained.
        signals: which of them are explained; the others are constants.
        name: which sample of the database it is.
    """

    operator: Callable[..., Any]
    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec
    operands: tuple[int, ...]
    signals: tuple[int, ...]
    name: str

    def __str__(self) -> str:
        explained = "" if self.has_constants or len(self.operands) == 1 else ", all operands"
        return f"{self.name}{explained}"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What is explained, with an axis for the one sample in front."""
        return tuple(self.leaves[index].unsqueeze(0) for index in self.signals)

    @property
    def has_constants(self) -> bool:
        """Whether an operand that could be explained is a constant."""
        return self.signals != self.operands

    @property
    def all_explained(self) -> bool:
        """Whether no number that is an argument is a constant."""
        others = [leaf for i, leaf in enumerate(self.leaves) if i not in self.signals]
        return not self.is_masked and not any(
            leaf.is_floating_point() if isinstance(leaf, Tensor) else isinstance(leaf, float)
            for leaf in others
        )

    @property
    def is_masked(self) -> bool:
        """Whether an argument says which entries count: the others are constants in their place."""
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in self.leaves)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A weighted sum of all that can be differentiated, one for the sample."""
        entries = self.entries(*inputs)
        return (entries * _weights(entries)).sum().reshape(1)

    def entries(self, *inputs: Tensor) -> Tensor:
        """All that can be differentiated, one after the other."""
        results = self._results(inputs)
        parts = [_real(results[index]).reshape(-1) for index in self._differentiable]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @cached_property
    def _differentiable(self) -> list[int]:
        results = self._results([tensor.clone().requires_grad_() for tensor in self.inputs])
        return [i for i, r in enumerate(results) if isinstance(r, Tensor) and r.requires_grad]

    def _results(self, inputs: Sequence[Tensor]) -> list[Any]:
        # Some operators write into their operands, such as running statistics.
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        for index, tensor in zip(self.signals, inputs, strict=True):
            leaves[index] = tensor.squeeze(0)
        torch.default_generator.manual_seed(0)
        operand, args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return pytree.tree_leaves(self.operator(operand, *args, **kwargs))

    @property
    def held(self) -> float:
        """The weight of the entries that are not the same whatever the inputs are."""
        less, same, more = (
            self.entries(*[x * scale for x in self.inputs]) for scale in (0.99, 1.0, 1.01)
        )
        # One side of a tie of two is not held by the other.
        changed = (less != same) & (more != same)
        return float(_weights(same)[changed].sum() / _weights(same).sum())

    @cached_property
    def plain(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The score and its gradients by autograd, without the trace."""
        entered = [tensor.clone().requires_grad_() for tensor in self.inputs]
        score = self(*entered)
        # An error for an operand of which only the type or the shape counts.
        return score.detach(), torch.autograd.grad(score, entered)

    @property
    def is_usable(self) -> bool:
        """Whether there is a score to share out, and autograd has a gradient for it."""
        if not self.signals or not all(0 < t.numel() <= _ENTRIES for t in self.inputs):
            return False
        try:
            score, gradients = self.plain
        except Exception:
            # Torch has samples for its errors, and not every spelling takes every argument.
            return False
        finite = all(bool(t.isfinite().all()) for t in (score, *gradients, *self.inputs))
        return finite and bool(score.abs() > 1e-9)

    @cached_property
    def spelled(self) -> list[Case]:
        """The same, written in all other ways that torch has for it."""
        own = self.name.partition(":")[0]
        info = OPERATORS[own]
        functions = {alias.name: alias.op for alias in info.aliases}
        for spelling in (info, *info.aliases):
            functions[f"Tensor.{spelling.name}"] = spelling.method_variant
            functions[f"Tensor.{spelling.name}_"] = _on_a_copy(spelling.inplace_variant)
        functions["axis, keepdims"] = _in_numpys_words(self.operator)
        functions["input="] = _by_name(self.operator)
        written = [
            replace(self, operator=function, name=f"{own}:{name}")
            for name, function in functions.items()
            if function is not None
        ]
        return [c for c in written if c.is_usable and torch.equal(c.plain[0], self.plain[0])]


def samples(info: OpInfo, *, requires_grad: bool) -> Iterator[Any]:
    """The samples of an operator, in double precision, the same at each call.

    ``info.sample_inputs`` gives the same, but searches the stack for a test of torch's for each
    call, and seeds devices that there aren't: that takes longer than most operators.
    """
    _seed()
    for sample in info.sample_inputs_func(info, "cpu", torch.float64, requires_grad):
        yield sample
        _seed()


def _seed() -> None:
    torch.default_generator.manual_seed(_SEED)
    random.seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 - what torch draws its samples from


@lru_cache(maxsize=1)
def cases(name: str) -> tuple[Case, ...]:
    """Some of an operator's samples, with one operand explained, and with all of them."""
    info, found = OPERATORS[name], list[Case]()
    with torch.random.fork_rng(devices=[]):
        drawn = list(itertools.islice(samples(info, requires_grad=True), _LOOKED_AT))
        step = max(len(drawn) // _SAMPLES, 1)
        order = [i for start in range(step) for i in range(start, len(drawn), step)]
        for index in order:
            if len({case.name for case in found}) == _SAMPLES:
                break
            found += filter(
                lambda c: c.is_usable, _of_sample(info, drawn[index], f"{name}:{index}")
            )
    return tuple(found)


def _of_sample(info: OpInfo, sample: Any, name: str) -> Iterator[Case]:
    kwargs = {key: _TRAINING.get(key, value) for key, value in sample.kwargs.items()}
    leaves, structure = pytree.tree_flatten((sample.input, sample.args, kwargs))
    operands = _operands(leaves)
    leaves = tuple(leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    for signals in dict.fromkeys((operands[:1], operands)):
        yield Case(info.op, leaves, structure, operands, signals, name)


def _operands(leaves: Iterable[Any]) -> tuple[int, ...]:
    """Which of the arguments torch has derivatives for."""
    return tuple(
        index
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.layout is torch.strided
    )


def _weights(entries: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, len(entries), dtype=entries.dtype)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _on_a_copy(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A function that writes into its operand, for one that must stay as it is."""
    return function and (lambda x, *args, **kwargs: function(x.clone(), *args, **kwargs))


def _in_numpys_words(function: Callable[..., Any]) -> Callable[..., Any]:
    words = {"dim": "axis", "keepdim": "keepdims"}
    return lambda *args, **kwargs: function(
        *args, **{words.get(k, k): v for k, v in kwargs.items()}
    )


def _by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, **kwargs: function(input=x, **kwargs)


def _name(info: OpInfo) -> str:
    return ".".join(filter(None, (info.name, info.variant_test_name)))


OPERATORS: dict[str, OpInfo] = {
    _name(info): info
    for info in op_db
    if info.supports_autograd and torch.float64 in info.supported_dtypes("cpu")
    if _name(info) not in LEFT_OUT
}
