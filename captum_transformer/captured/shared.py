"""Results that a graph computes several times are computed once, if that takes no more memory."""

from collections.abc import Iterable
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from captum_transformer.captured.simplified import as_key, is_view


def share(graph: Graph) -> None:
    """Replaces results by equal ones that were computed before.

    A method may compute something again in order to free it in between, as the maps of attention.
    A result is kept if the graph's peak of memory stays what it is.

    Args:
        graph: a graph of operations with an example of each result.
    """
    memory = _Memory(graph)
    firsts = _firsts(graph, memory)
    for node, first in firsts.items():
        users = [user for user in node.users if user not in firsts]
        if users and memory.keeps(first, node):
            for user in users:
                user.replace_input_with(node, first)
    for node in reversed(graph.nodes):
        if not node.users and _is_repeatable(node):
            graph.erase_node(node)


def aliased(node: Node, *, written: bool) -> list[Node]:
    """Returns the arguments that an operation writes into, or whose memory its result shares."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    given: list[tuple[Any, Any]] = list(zip(schema.arguments, node.args, strict=False))
    given += [(a, node.kwargs[a.name]) for a in schema.arguments if a.name in node.kwargs]
    known = [(a.alias_info, arg) for a, arg in given if a.alias_info is not None]
    return [arg for info, arg in known if isinstance(arg, Node) and info.is_write >= written]


def written_into(graph: Graph) -> set[Node]:
    """Returns the nodes whose memory is written into, also through another node."""
    roots = root_of(graph)
    written = {roots[one] for node in graph.nodes for one in aliased(node, written=True)}
    return {node for node in graph.nodes if roots[node] in written}


def root_of(graph: Graph) -> dict[Node, Node]:
    """Returns the node that made the memory that each node shows."""
    memory = _Memory(graph)
    return {node: memory.root(node) for node in graph.nodes}


def _firsts(graph: Graph, memory: "_Memory") -> dict[Node, Node]:
    """Returns the nodes whose result was computed before, with the node that computed it."""
    made: dict[Any, Node] = {}
    firsts: dict[Node, Node] = {}
    for node in graph.nodes:
        if not node.all_input_nodes or not _is_repeatable(node):
            continue
        if any(memory.root(one) in memory.changed for one in (node, *node.all_input_nodes)):
            continue
        args, kwargs = map_arg((node.args, node.kwargs), lambda one: firsts.get(one, one))
        first = made.setdefault((node.target, as_key(args), as_key(kwargs)), node)
        if first is not node:
            firsts[node] = first
    return firsts


def _is_repeatable(node: Node) -> bool:
    if node.op != "call_function" or node.target is getitem:
        return node.op == "call_function"
    schema = getattr(node.target, "_schema", None)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return schema is not None and not schema.is_mutable and not random


class _Memory:
    """How much memory the results of a graph take, from operation to operation.

    Attributes:
        changed: the nodes whose memory is written into after they are made, or returned.
    """

    def __init__(self, graph: Graph) -> None:
        self._roots: dict[Node, Node] = {}
        self._places = {node: place for place, node in enumerate(graph.nodes)}
        self._ends: dict[Node, int] = {}
        self.changed: set[Node] = set()
        for node, place in self._places.items():
            for one in (node, *node.all_input_nodes):
                self._ends[self.root(one)] = place
            self._change(aliased(node, written=True))
            if node.op == "output":
                self._change(node.all_input_nodes)
            elif node.op == "call_function" and not hasattr(node.target, "_schema"):
                # Of other functions it isn't known what they share or write.
                self._change(() if node.target is getitem else (node, *node.all_input_nodes))
        self._used = np.zeros(len(self._places) + 1, dtype=np.int64)
        for node, end in self._ends.items():
            if node.op == "call_function":
                self._used[self._places[node] : end + 1] += _size(node)
        self._peak = self._used.max()

    def _change(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            root = self.root(node)
            # One of several results is changed with what makes them.
            self.changed |= {root, *(root.all_input_nodes if root.target is getitem else ())}

    def root(self, node: Node) -> Node:
        """Returns the node that made the memory that a node shows."""
        if node not in self._roots:
            source = _source(node)
            self._roots[node] = node if source is None else self.root(source)
        return self._roots[node]

    def keeps(self, node: Node, until: Node) -> bool:
        """Keeps a result until another one is made, and returns True, if there is room for it."""
        root = self.root(node)
        if root.op != "call_function":
            return True
        start, end = self._ends[root] + 1, self._ends[self.root(until)] + 1
        size = _size(root)
        if end > start:
            if (self._used[start:end] + size > self._peak).any():
                return False
            self._used[start:end] += size
            self._ends[root] = end - 1
        return True


def _source(node: Node) -> Node | None:
    """Returns the argument whose memory a node shows, or None if it makes its own."""
    if node.op != "call_function":
        return None
    if node.target is getitem:
        (whole,) = node.all_input_nodes
        return whole if is_view(whole) else None
    shown = node.all_input_nodes if is_view(node) else aliased(node, written=True)
    return shown[0] if shown else None


def _size(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
