"""Watches a call while it becomes a graph, and refuses what a graph can't repeat."""

import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from captum_transformer.captured.arguments import Role
from captum_transformer.captured.executed import line_of
from captum_transformer.errors import CaptureError

_TO_HOST = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
_ATEN = torch.ops.aten
# Masks, their second argument, decide how many entries these find.
_BY_MASK = (_ATEN.index.Tensor, _ATEN.masked_select.default)
_MASKS = (torch.bool, torch.uint8)
_STATE = "the model's own tensors"
_CHANCE = "random numbers"


class Condition(NamedTuple):
    """A condition that must hold for a graph to be the right one.

    Attributes:
        holds: a tensor of one entry: whether the condition holds.
        what: what is checked: "whether ...", or what the model reads, and where.
        of_model: whether the model read a value, and not this library.
    """

    holds: Tensor
    what: str
    of_model: bool = False


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations that become a graph: which numbers Python reads, and what is random.

    Args:
        roles: the roles of the tensors that the graph gets.

    Attributes:
        conditions: the conditions that must hold for the graph to be the right one.
        random: the random operations, with their lines in the model.
        literals: the tensors that were made from Python numbers.
    """

    def __init__(self, roles: Sequence[Role]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._roles = list(roles)
        self._known: dict[Node, frozenset[str | Role]] = {}
        self._chance = _of_numpy()
        self.conditions: list[Condition] = []
        self.random: dict[Node, str] = {}
        self.literals: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._chance != _of_numpy():
            raise CaptureError(
                f"The model draws random numbers in NumPy, before {_line()}: a captured call would "
                "repeat those that were drawn when it was captured."
            )
        tags = func.tags
        if torch.Tag.data_dependent_output in tags:
            return self._read(func, args, kwargs)
        if torch.Tag.dynamic_output_shape in tags:
            return self._sized(func, args, kwargs)
        if func is _ATEN.lift_fresh.default:
            self.literals.append(args[0])
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in tags and not _is_certain(func, args, kwargs):
            for tensor in tree_leaves(result):
                node = _node(tensor)
                if node is not None:
                    self.random[node] = _line()
        return result

    def truth(self, condition: Tensor, what: str) -> bool:
        """Returns whether a condition of the library holds; each call of the graph checks it."""
        condition = condition.detach()
        with _disable_current_modes():
            found = bool(condition)
        if self._made_of(condition):
            self.conditions.append(Condition(condition if found else ~condition, what))
        return found

    def numbers(self, tensor: Tensor, what: str) -> Any:
        """Returns the numbers of a tensor; each call of the graph checks that they are equal."""
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            found = tensor.detach().cpu().numpy()
        if self._made_of(tensor):
            known = torch.tensor(found, dtype=tensor.dtype, device=tensor.device)
            alike = (tensor == known) | (tensor.isnan() & known.isnan())
            self.conditions.append(Condition(alike.all(), what))
        return found

    def refuse(self, why: str) -> None:
        """Raises an error: what follows depends on numbers in a way that can't be captured."""
        raise CaptureError(f"{why} Capture the call with other inputs, or explain it uncaptured.")

    def on_host(self, func: Callable[..., Any], tensor: Tensor, args: Any, kwargs: Any) -> Any:
        """Runs a function of the model that turns a tensor into numbers, or refuses it."""
        made_of = self._made_of(tensor)
        if _unreadable(made_of):
            self._refuse_reading(f"`{getattr(func, '__name__', 'numpy')}`", made_of)
        self._require_equal([tensor])
        with _disable_current_modes():
            return func(tensor, *args, **kwargs)

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = _tensors_in((args, kwargs))
        made_of = self._made_of_all(tensors)
        with _disable_current_modes():
            value = func(*args, **kwargs)
        if not made_of:
            return value
        if _unreadable(made_of) or value != value:
            self._refuse_reading(f"a value ({value})", made_of)
        if func is not _ATEN._local_scalar_dense.default:  # noqa: SLF001
            self._require_equal(tensors)
            return value
        reads = f"the value of {_named(made_of)}, which was {value}, at {_line()}"
        self.conditions.append(Condition((args[0] == value).reshape(()), reads, of_model=True))
        return value

    def _sized(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation whose result has as many entries as numbers say: these have to stay."""
        decide = _tensors_in(args[1] if func in _BY_MASK else (args, kwargs))
        if func is _ATEN.index.Tensor:
            decide = [one for one in decide if one.dtype in _MASKS]
        made_of = self._made_of_all(decide)
        if _unreadable(made_of):
            raise CaptureError(
                f"How many entries `{func.overloadpacket.__name__}` finds depends on "
                f"{_named(made_of)}, at {_line()}: a captured call can't follow, as its graph has "
                "fixed shapes. Explain the model uncaptured."
            )
        self._require_equal(decide)
        if func is _ATEN.index.Tensor:
            every = (
                self._places(i) if i is not None and i.dtype in _MASKS else [i] for i in args[1]
            )
            return func(args[0], list(chain.from_iterable(every)))
        if func is _ATEN.masked_select.default:
            values, mask = torch.broadcast_tensors(*args)  # type: ignore[no-untyped-call]
            return _ATEN.index.Tensor(values, self._places(mask))
        with _disable_current_modes():
            found = func(*args, **kwargs)
        return tree_map(self._literal, found)

    def _literal(self, found: Any) -> Any:
        """Makes a tensor a part of the graph, which is the same in each call."""
        if isinstance(found, Tensor):
            self.literals.append(found)
        return found

    def _places(self, mask: Tensor) -> list[Tensor]:
        """Returns the indices of a mask's entries, which don't depend on numbers."""
        with _disable_current_modes():
            found = mask.nonzero(as_tuple=True)
        return [self._literal(one) for one in found]

    def _require_equal(self, tensors: Sequence[Tensor]) -> None:
        """Adds the condition that tensors hold the same numbers as now."""
        for tensor in tensors:
            made_of = self._made_of(tensor)
            if made_of:
                reads = f"the numbers of {_named(made_of)}, at {_line()}"
                with _disable_current_modes():
                    known = self._literal(tensor.detach().clone())
                self.conditions.append(Condition((tensor == known).all(), reads, of_model=True))

    def _refuse_reading(self, what: str, made_of: frozenset[str | Role]) -> None:
        raise CaptureError(
            f"Python reads {what} that depends on {_named(made_of)}, at {_line()}. A captured call "
            "would always use the value from when it was captured. Write it with tensors (e.g. "
            "`torch.where` instead of `if`), or explain the model uncaptured."
        )

    def _made_of_all(self, tensors: Sequence[Tensor]) -> frozenset[str | Role]:
        return frozenset[str | Role]().union(*map(self._made_of, tensors))

    def _made_of(self, tensor: Tensor) -> frozenset[str | Role]:
        """Returns what a tensor was made of, among the things that may differ from call to call."""
        node = _node(tensor)
        if node is None:
            known = any(tensor is literal for literal in self.literals)
            return frozenset() if known else frozenset({_STATE})
        pending = [node]
        while pending:
            node = pending[-1]
            if node in self._known:
                pending.pop()
                continue
            unknown = [one for one in node.all_input_nodes if one not in self._known]
            if unknown:
                pending += unknown
                continue
            self._known[node] = self._of_node(node)
            pending.pop()
        return self._known[node]

    def _of_node(self, node: Node) -> frozenset[str | Role]:
        if node.op == "placeholder":
            place = [n for n in node.graph.nodes if n.op == "placeholder"].index(node)
            return frozenset({self._roles[place]})
        if node.op == "get_attr":
            held = getattr(_tracer().root, str(node.target))
            known = any(held is literal for literal in self.literals)
            return frozenset() if known else frozenset({_STATE})
        made_of = frozenset[str | Role]().union(*(self._known[n] for n in node.all_input_nodes))
        return made_of | {_CHANCE} if node in self.random else made_of


class HostReads(TorchFunctionMode):
    """Sees tensors become Python's or NumPy's numbers, which is not an operation of torch."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _TO_HOST:
            return self._recording.on_host(func, args[0], args[1:], kwargs or {})
        return func(*args, **(kwargs or {}))


def _tracer() -> Any:
    mode = get_proxy_mode()
    if mode is None:
        raise RuntimeError("only within `make_fx`")
    return mode.tracer


def _node(tensor: Any) -> Node | None:
    """Returns the node that makes a tensor in the graph, or None if it comes from elsewhere."""
    if not isinstance(tensor, Tensor):
        return None
    slot: Any = get_proxy_slot(tensor, _tracer(), None)
    return None if slot is None else slot.proxy.node


def _tensors_in(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _unreadable(made_of: frozenset[str | Role]) -> bool:
    """Returns whether some of it may not decide what Python does."""
    return not all(isinstance(role, Role) and role.may_be_read for role in made_of)


def _is_certain(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Returns whether a random operation draws no numbers, as dropout with probability zero."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return "dropout_p" in names and not given.get("dropout_p", 0.0)


def _of_numpy() -> tuple[int, int]:
    """Returns the position of NumPy's global generator, whose draws can't be observed."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return int(state[2]), int(state[1][0])


def _named(made_of: frozenset[str | Role]) -> str:
    names = sorted({role.name if isinstance(role, Role) else role for role in made_of})
    return ", ".join(names)


def _line() -> str:
    """Returns the line that runs now, of the model or other code outside of this library."""
    return line_of(sys._getframe(1))
