"""Graphs as Python functions that call each operation as directly as possible."""

import math
from collections.abc import Callable, Mapping
from operator import getitem
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from captum_transformer.captured.simplified import Form

# Python's own functions for operations read their arguments faster than those in `torch.ops`.
_BINDINGS = (torch, Tensor, torch._C._nn)  # noqa: SLF001


def as_function(module: GraphModule, forms: Mapping[Node, Form]) -> Callable[..., list[Tensor]]:
    """Returns a function that does what a graph does, and frees each result after its last use.

    Args:
        module: the graph.
        forms: a tensor without data like each result.
    """
    written = _Written()
    lines, names = [], dict[Node, str]()
    last = {used: node for node in module.graph.nodes for used in node.all_input_nodes}
    ends: dict[Node, list[Node]] = {}
    for used, node in last.items():
        ends.setdefault(node, []).append(used)
    arguments = [f"x{n}" for n, _ in enumerate(module.graph.find_nodes(op="placeholder"))]
    given = iter(arguments)
    with torch.no_grad(), _First() as first:  # type: ignore[no-untyped-call]
        for number, node in enumerate(module.graph.nodes):
            if node.op == "placeholder":
                names[node] = next(given)
            elif node.op == "get_attr":
                names[node] = written.constant(getattr(module, node.target))
            elif node.op == "output":
                lines.append(f"return {written.text(node.args[0], names)}")
            else:
                names[node] = f"r{number}" if node.users else "_"
                lines.append(f"{names[node]} = {written.call(node, names, first, forms)}")
                freed = [names[one] for one in ends.get(node, ()) if one.op != "get_attr"]
                if freed:
                    lines.append(f"del {', '.join(freed)}")
    body = "\n    ".join(lines)
    exec(f"def captured({', '.join(arguments)}):\n    {body}", written.values)  # noqa: S102
    function: Callable[..., list[Tensor]] = written.values["captured"]
    return function


class _Written:
    """Writes calls as text.

    Attributes:
        values: everything that the text names.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._known: dict[int, str] = {}

    def constant(self, value: Any) -> str:
        """Returns a name for a value."""
        if id(value) not in self._known:
            self._known[id(value)] = name = f"c{len(self.values)}"
            self.values[name] = value
        return self._known[id(value)]

    def text(self, item: Any, names: Mapping[Node, str]) -> str:
        """Returns arguments as text."""
        if isinstance(item, Node):
            return names[item]
        if isinstance(item, (list, tuple)):
            inner = "".join(f"{self.text(one, names)}, " for one in item)
            return f"[{inner}]" if any(isinstance(one, Node) for one in item) else f"({inner})"
        plain = type(item) in (bool, int, str, type(None))
        return repr(item) if plain or _is_finite(item) else self.constant(item)

    def call(
        self,
        node: Node,
        names: Mapping[Node, str],
        first: "_First",
        forms: Mapping[Node, Form],
    ) -> str:
        """Returns the call of a node's operation as text."""
        if node.target is getitem:
            whole: Any = node.args[0]
            return f"{names[whole]}[{node.args[1]}]"
        function = self.constant(first.binding(node, forms))
        args = [self.text(arg, names) for arg in node.args]
        args += [f"{name}={self.text(arg, names)}" for name, arg in node.kwargs.items()]
        return f"{function}({', '.join(args)})"


class _Called(Exception):  # noqa: N818 - it is no error
    """The first operation that a function has called, with its arguments."""

    def __init__(self, *called: Any) -> None:
        super().__init__()
        self.called = called


class _First(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops at the first operation, before it runs."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise _Called(func, args, kwargs or {})

    def binding(self, node: Node, forms: Mapping[Node, Form]) -> Any:
        """Returns Python's function for an operation, or the operation if there is none.

        It is one that calls this very operation, with the same arguments.
        """
        operation: Any = node.target
        schema = getattr(operation, "_schema", None)
        space, _, name = ("" if schema is None else schema.name).partition("::")
        if space != "aten" or any(forms[one] is None for one in node.all_input_nodes):
            return operation
        args, kwargs = map_arg((node.args, node.kwargs), forms.__getitem__)
        for owner in _BINDINGS:
            function = getattr(owner, name, None)
            if not isinstance(function, (BuiltinFunctionType, MethodDescriptorType)):
                continue
            try:
                function(*args, **kwargs)
            except _Called as first:
                if _is_same(first.called, (operation, args, kwargs)):
                    return function
            except (TypeError, RuntimeError):  # it takes other arguments
                continue
        return operation


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_is_same(*pair) for pair in pairs)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return type(one) is type(other) and bool(one == other)


def _is_finite(item: Any) -> bool:
    return type(item) is float and math.isfinite(item)
