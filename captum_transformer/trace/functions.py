"""Looks torch functions up in the table, and binds their calls to canonical arguments."""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from captum_transformer.trace.bodies import (
    COMPOSITES,
    WRITTEN_OUT,
    in_canonical_words,
    written_into,
)
from captum_transformer.trace.catalogue import ENTRIES, QUESTIONS, UNKNOWN
from captum_transformer.trace.entries import ROLES, Entry
from captum_transformer.trace.flex import flex_attend, requires_grad
from captum_transformer.trace.kind_by import BY_ARGUMENTS, by_source
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.linear_maps import LAYERS, LinearMap
from captum_transformer.trace.losses import LOSSES

# The attribute of a user's own operation that holds its entry.
ENTRY = "__captum_transformer_entry__"
# The entries of described kernels of other libraries.
KERNELS: dict[Any, Entry] = {}


@dataclass(frozen=True)
class Function:
    """What the trace knows about one torch function.

    Attributes:
        name: its bare name, the same for ``add``, ``add_``, ``__add__`` and ``__iadd__``.
        kind: its kind, unless `kind_by` is given.
        call: an out-of-place callable with the same arguments, used to run it on other tensors.
        entry: its entry in the table.
        inplace: whether it writes into its first argument.
        body: the body that is traced in its place, without dispatch of its own, or None.
        layer: for a function described as a linear layer, converts its arguments to those of
            `F.linear`; otherwise None.
        foreign: whether it is a kernel of another library, which may have no derivative.
        kind_by: a function that returns the kind of a call from its bound arguments, or None.
        answers: whether it is of kind ASKS and returns a tensor, such as a comparison.
    """

    name: str
    kind: Kind
    call: Callable[..., Any]
    entry: Entry = UNKNOWN
    inplace: bool = False
    body: Callable[..., Any] | None = None
    layer: LinearMap | None = None
    foreign: bool = False
    kind_by: "Callable[[Mapping[str, Any]], Kind] | None" = None
    answers: bool = False

    @cached_property
    def draws(self) -> bool:
        """Whether it may draw random numbers, apart from dropout, which is off."""
        kernel = isinstance(self.call, (OpOverload, OpOverloadPacket))
        name = str(self.call).removeprefix("aten.").partition(".")[0] if kernel else self.name
        return _draws(name.strip("_"))

    @cached_property
    def takes_inplace(self) -> bool:
        """Whether one of its positional arguments says whether it writes into another."""
        return "inplace" in self.entry.parameters

    def role_of(self, name: str) -> Role:
        """Returns the role of tensors that are passed by the given name."""
        return ROLES.get(self.entry.canonical(name), Role.SIGNAL)

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """The roles of tensors by position; the last role is for all further positions."""
        names = (*self.entry.parameters, self.entry.rest)
        return tuple(ROLES.get(name or "", Role.SIGNAL) for name in names)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of a call by their canonical names.

        >>> describe(torch.Tensor.softmax).bind((torch.ones(2),), {"axis": 0})["dim"]
        0
        >>> describe(torch.Tensor.view).bind((torch.ones(2), 1, 2), {})["shape"]
        (1, 2)
        """
        entry = self.entry
        bound = dict(zip(entry.parameters, args))  # noqa: B905 - this is faster
        if entry.rest is not None and len(args) > len(entry.parameters):
            rest = args[len(entry.parameters) :]
            whole = len(rest) == 1 and isinstance(rest[0], (tuple, list))
            bound[entry.rest] = rest[0] if whole else rest
        for name, argument in kwargs.items():
            bound[entry.canonical(name)] = argument
        return bound


# Functions written in Python that draw. Dropout, including that of attention, is off.
_DRAWS = frozenset({"gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d"})


def _draws(name: str) -> bool:
    """Whether a function draws random numbers, according to torch's schemas.

    >>> [_draws(name) for name in ("rand", "normal", "bernoulli", "gumbel_softmax", "linear")]
    [True, True, True, True, False]
    """
    if "dropout" in name or "attention" in name:
        return False
    packets = (getattr(torch.ops.aten, spelling, None) for spelling in (name, f"{name}_"))
    return name in _DRAWS or any(
        torch.Tag.nondeterministic_seeded in getattr(packet, overload).tags
        for packet in packets
        if isinstance(packet, OpOverloadPacket)
        for overload in packet._overload_names
    )


_IN_PLACE_OPERATORS = frozenset(
    "__iadd__ __isub__ __imul__ __idiv__ __itruediv__ __imatmul__ __ipow__ __imod__"
    " __setitem__".split()
)


# Names of public functions, unlike names that exist only with underscores, such as `__index__`.
_PUBLIC = frozenset(
    name
    for name in ENTRIES
    if name != "index" and any(getattr(m, name, None) is not None for m in (Tensor, torch, F))
) | {"slice"}  # brackets, as `torch.export` writes them


# Functions whose bodies are traced, regardless of the entry that their name has in the table.
_BODIES: dict[Any, Callable[..., Any]] = {
    Tensor.requires_grad.__get__: requires_grad,  # type: ignore[attr-defined]
    **LOSSES,
    **COMPOSITES,
}


@cache
def describe(function: Callable[..., Any]) -> Function:
    """Looks a torch function up in the table, by its bare name.

    >>> describe(torch.Tensor.add_).name, describe(torch.Tensor.__iadd__).kind.name
    ('add', 'ADD')
    """
    raw, name = _raw_name(function), bare_name(function)
    packet = getattr(function, "overloadpacket", function)
    own: Entry | None = getattr(function, ENTRY, None)
    if own is not None:
        return _described(function, name, own)
    if (kernel := KERNELS.get(function) or KERNELS.get(packet)) is not None:
        return replace(_described(function, str(function), kernel), foreign=True)
    if (layer := LAYERS.get(function) or LAYERS.get(packet)) is not None:
        return Function(name, Kind.UNKNOWN, function, body=F.linear, layer=layer)
    if isinstance(function, (OpOverload, OpOverloadPacket)):
        return _kernel(function)
    if isinstance(function, HigherOrderOperator):
        if name != "flex_attention":
            return Function(name, Kind.UNKNOWN, function)
        return replace(_described(function, name, ENTRIES[name]), call=flex_attend)
    entry = ENTRIES.get(name, UNKNOWN)
    if raw in ("requires_grad_", "retain_grad", "__float__", "__int__", "__bool__"):
        entry = ENTRIES["requires_grad"]
    kind = entry.kind
    if function in _BODIES:
        return Function(name, Kind.UNKNOWN, function, body=_BODIES[function])
    writes = raw.endswith("_") and not raw.startswith("__") and kind is not Kind.ASKS
    inplace = writes or raw in _IN_PLACE_OPERATORS
    if name in WRITTEN_OUT:
        body = in_canonical_words(WRITTEN_OUT[name])
        return Function(name, kind, function, body=written_into(body) if inplace else body)
    return _described(function, name, entry, inplace=inplace)


def _kernel(function: OpOverload | OpOverloadPacket) -> Function:
    """Describes a kernel called through ``torch.ops``, if it is torch's own and its name is public.

    Kernels of other libraries may have the name of a torch function but do something else.
    """
    kernel, _, overload = str(function).removeprefix("aten.").partition(".")
    name = kernel.removesuffix("_")
    written_elsewhere = overload.endswith("out")
    known = isinstance(function, OpOverload) and function.namespace == "aten" and name in _PUBLIC
    if not known or written_elsewhere:
        return Function(str(function), Kind.UNKNOWN, function)
    entry = ENTRIES[name]
    schema: Any = function._schema
    names = [argument.name for argument in schema.arguments]
    described = _described(function, name, entry, inplace=kernel.endswith("_"))
    return replace(described, entry=entry.in_order(names))


def _described(
    function: Callable[..., Any], name: str, entry: Entry, *, inplace: bool = False
) -> Function:
    names = {*entry.parameters, *entry.aliases.values(), entry.rest or ""}
    looks_up = entry.kind is Kind.MOVE and any(ROLES.get(n) is Role.INDEX for n in names)
    by_name = BY_ARGUMENTS.get(name) if entry is ENTRIES.get(name) else None
    call = _out_of_place(name, function) if inplace or name in _OUT_OF_PLACE else function
    kind_by = by_name or (by_source if looks_up else None)
    signature = _signature(function) if getattr(function, "__module__", None) == F.__name__ else ()
    if signature and "args" not in signature:
        entry = entry.in_order(signature)  # functionals may have another order of arguments
    answers = entry.kind is Kind.ASKS and name in QUESTIONS
    return Function(name, entry.kind, call, entry, inplace, kind_by=kind_by, answers=answers)


def _raw_name(function: Callable[..., Any]) -> str:
    raw: str = getattr(function, "__name__", type(function).__name__)
    if raw in ("__get__", "__set__"):
        attribute = getattr(getattr(function, "__self__", None), "__name__", raw)
        raw = attribute if raw == "__get__" else f"set_{attribute}"
    return raw


def bare_name(function: Callable[..., Any]) -> str:
    """Returns the name that all spellings of a function have in common.

    >>> bare_name(torch.Tensor.__iadd__)
    'add'
    """
    raw = _raw_name(function)
    name = raw.strip("_")
    return name.removeprefix("i") if raw in _IN_PLACE_OPERATORS else name


def _signature(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


# Out-of-place versions of functions that write into their first argument.
def _setitem(tensor: Tensor, index: Any, value: Any) -> Tensor:
    result = tensor.clone()
    result[index] = value
    return result


def _copy(tensor: Tensor, source: Tensor, *_: Any, **__: Any) -> Tensor:
    return source.expand_as(tensor)


def _as_strided_scatter(
    input: Tensor,  # noqa: A002
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int = 0,
) -> Tensor:
    """As torch's function, whose derivative for the tensor that is written into is wrong."""
    result = input.clone()
    result.as_strided(size, stride, storage_offset).copy_(src)
    return result


_OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "as_strided_scatter": _as_strided_scatter,
    "setitem": _setitem,
    "copy": _copy,
    "truediv": operator.truediv,
}


def _out_of_place(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the out-of-place version of a function, with the same arguments."""
    known = _OUT_OF_PLACE.get(name) or getattr(Tensor, name, None)
    return known or getattr(torch, name, None) or function


# FlexAttention returns this in addition to its output.
LOG_SUM_EXP = Function("flex_attention's log-sum-exp", Kind.UNKNOWN, torch.logsumexp)
