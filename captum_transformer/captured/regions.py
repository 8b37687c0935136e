"""Graphs that are compiled in parts: repeated parts, such as a model's layers, only once."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import getitem
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from captum_transformer.captured.pure import pure_graph
from captum_transformer.captured.rows import with_fewer_rows

Compiler: TypeAlias = Callable[[GraphModule, Sequence[Tensor]], Callable[..., Any]]
# The smallest number of operations in a repeated part: shorter ones compile quickly, and a compiler
# fuses no operations across the ends of a part.
_SMALLEST = 32


def compiled_in_parts(
    graph: GraphModule, tensors: Sequence[Tensor], compiler: Compiler
) -> GraphModule:
    """Splits a graph into parts and compiles each; equal parts are compiled once.

    Repeats are found in the sequence of operations, from the operations and the form of what they
    read, not from the model. Parts that share a compiled function are equal in all operations,
    numbers and connections.

    Args:
        graph: a graph of ATen operations.
        tensors: the tensors that it is called with.
        compiler: makes a function from a graph without in-place operations and from examples of its
            arguments, which have no data.
    """
    from torch._inductor.decomposition import select_decomp_table  # slow to import

    pure = pure_graph(graph, tensors, select_decomp_table())
    _lift_factors(pure)
    pure = with_fewer_rows(pure)
    items = _items(pure.graph)
    parts = [
        _Part.of([node for item in items[start:end] for node in item])
        for start, end in _cuts(_kinds(items), _Reads(items))
    ]
    used: dict[str, set[int]] = {}
    for part in parts:
        used.setdefault(part.key, set()).update(part.used)
    whole, copied, names = Graph(), dict[Node, Node](), dict[str, str]()
    for node in pure.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            copied[node] = whole.node_copy(node)
    for part in parts:
        results = sorted(used[part.key])
        if part.key not in names:
            names[part.key] = name = f"part_{len(names)}"
            examples = [node.meta["val"] for node in part.inputs]
            pure.add_module(name, _Compiled(compiler(part.alone(results), examples)))
        found = whole.call_module(names[part.key], tuple(copied[node] for node in part.inputs))
        for number, place in enumerate(results):
            if place in part.used:
                copied[part.nodes[place]] = whole.call_function(getitem, (found, number))
    (output,) = pure.graph.find_nodes(op="output")
    whole.node_copy(output, copied.__getitem__)
    return GraphModule(pure, whole, "CompiledGraph")


class _Compiled(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        vars(self)["forward"] = function


class _Part(NamedTuple):
    """Operations that follow each other.

    Attributes:
        nodes: the operations.
        inputs: the other nodes that they read, each once.
        used: the places of those that other operations read.
        key: equal for parts that compute the same from tensors of the same form.
    """

    nodes: list[Node]
    inputs: list[Node]
    used: list[int]
    key: str

    @classmethod
    def of(cls, nodes: list[Node]) -> "_Part":
        places = {node: place for place, node in enumerate(nodes)}
        inputs: dict[Node, int] = {}

        def name(node: Node) -> Any:
            if node in places:
                return f"result {places[node]}"
            return f"input {inputs.setdefault(node, len(inputs))}"

        lines = [(str(n.target), map_arg((n.args, n.kwargs), name)) for n in nodes]
        used = [place for node, place in places.items() if any(u not in places for u in node.users)]
        return cls(nodes, list(inputs), used, repr((lines, list(map(_form, inputs)))))

    def alone(self, results: Sequence[int]) -> GraphModule:
        """Returns a graph of these operations only, which returns some of their results."""
        graph, copied = Graph(), dict[Node, Node]()
        for number, node in enumerate(self.inputs):
            copied[node] = graph.placeholder(f"input_{number}")
        for node in self.nodes:
            copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(tuple(copied[self.nodes[place]] for place in results))
        return GraphModule(nn.Module(), graph, "Part")


def _lift_factors(module: GraphModule) -> None:
    """Turns the numbers that single values are multiplied by into tensors.

    An example is the number of layers that are left, which may be the only difference of layers.
    """
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor):
        value, (one, other) = node.meta["val"], node.args
        if value.dim() or isinstance(other, Node):
            continue
        name = f"factor_of_{node.name}"
        module.register_buffer(name, torch.tensor(other, dtype=value.dtype, device=value.device))
        with module.graph.inserting_before(node):
            lifted = module.graph.get_attr(name)
        lifted.meta["val"] = value
        node.args = one, lifted


def _items(graph: Graph) -> list[list[Node]]:
    """Returns the operations in order, each with the items taken from its result, if a tuple."""
    items: dict[Node, list[Node]] = {}
    for node in graph.find_nodes(op="call_function", target=getitem, sort=False):
        items.setdefault(node.args[0], []).append(node)
    every = (n for n in graph.nodes if n.op == "call_function" and n.target is not getitem)
    return [[node, *items.get(node, [])] for node in every]


def _kinds(items: Sequence[Sequence[Node]]) -> Tensor:
    """Returns a number for each operation, equal if they do the same to tensors of one form."""
    kinds: dict[str, int] = {}
    lines = (repr([(str(n.target), map_arg((n.args, n.kwargs), _form)) for n in i]) for i in items)
    return torch.tensor([kinds.setdefault(line, len(kinds)) for line in lines])


def _form(node: Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return "no tensor"
    return f"{value.dtype} {tuple(value.shape)} {value.stride()} {value.device}"


class _Reads:
    """Where the results of operations are read."""

    def __init__(self, items: Sequence[Sequence[Node]]) -> None:
        places = {node: place for place, item in enumerate(items) for node in item}
        self._by = [
            [places[u] for node in item for u in node.users if u in places] for item in items
        ]

    def across(self, cut: int, distance: int) -> int:
        """Counts the results that pass a cut and are made and read within a distance of it."""
        near = range(cut, cut + distance)
        return sum(any(u in near for u in by) for by in self._by[cut - distance : cut])


def _cuts(kinds: Tensor, reads: _Reads, start: int = 0) -> list[tuple[int, int]]:
    """Returns where parts start and end, so that many are equal."""
    if not len(kinds):
        return []
    first, slack, period, count = _repeat(kinds)
    if count < 2:
        return [(start, start + len(kinds))]
    ways = range(first, first + slack + 1)
    first = min(ways, key=lambda place: reads.across(start + place + period, period))
    last = first + count * period
    edges = [0, *range(first, last + 1, period), len(kinds)]
    cuts = []
    for one, other in pairwise(edges):
        cuts += _cuts(kinds[one:other], reads, start + one)
    return cuts


def _repeat(kinds: Tensor) -> tuple[int, int, int, int]:
    """Finds the sequence whose repeats save the most.

    Returns:
        Where the sequence starts, by how much later it may also start, its length, and how often it
        is repeated.
    """
    best, found = 0, (0, 0, len(kinds), 1)
    for period in range(_SMALLEST, len(kinds) // 2 + 1):
        differing = (kinds[period:] != kinds[:-period]).nonzero().flatten()
        ends = nn.functional.pad(differing, (1, 1), value=-1)
        ends[-1] = len(kinds) - period
        lengths = ends.diff() - 1
        length = int(lengths.max())
        saved = length // period * period
        start = int(ends[:-1][lengths == length][-1]) + 1  # the last of the longest
        if saved > best and not _repeats_short(kinds[start : start + period]):
            best, found = saved, (start, length - saved, period, length // period + 1)
    return found


def _repeats_short(kinds: Tensor) -> bool:
    """Whether a sequence is itself a repeat of one that is too short to be a part."""
    return any(bool((kinds[n:] == kinds[:-n]).all()) for n in range(1, _SMALLEST))
