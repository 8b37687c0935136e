"""Graphs that compute the same in whatever order their tensors lie in memory."""

from collections.abc import Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from captum_transformer.captured.pure import pure_graph
from captum_transformer.captured.shared import root_of, written_into

_ATEN = torch.ops.aten
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)  # noqa: SLF001


def in_any_order(module: GraphModule, tensors: Sequence[Tensor]) -> GraphModule:
    """Returns a graph that computes the same whichever order in memory a compiler chooses.

    Compilers write operations as others, whose results may lie in memory in another order than was
    recorded. A view of such a result would fail, or read other entries by their places.

    Args:
        module: a graph of ATen operations, with an example of each result.
        tensors: the tensors that it is called with.
    """
    if module.graph.find_nodes(op="call_function", target=_ATEN.as_strided.default):
        module = pure_graph(module, tensors, {})  # nothing is written into what they show
    graph = Graph()
    copied: dict[Node, Node] = {}
    roots, written = root_of(module.graph), written_into(module.graph)
    for node in module.graph.nodes:
        copied[node] = new = graph.node_copy(node, copied.__getitem__)
        if node.target in _VIEWS and node not in written:
            new.target = _ATEN.reshape.default
        elif node.target is _ATEN.as_strided.default and roots[node] not in written:
            with graph.inserting_before(new):
                _read_by_places(new, node, roots[node], copied[roots[node]])
        elif node.target is getitem and node.args[1] and isinstance(node.meta.get("val"), Tensor):
            # PyTorch's decomposition of attention returns something else than the sums of the
            # exponentials. With another number of dimensions, this fails.
            dims = list(range(node.meta["val"].ndim))
            copied[node] = graph.call_function(_ATEN.permute.default, (new, dims))
            copied[node].meta = dict(node.meta)
    return GraphModule(module, graph, "InAnyOrder")


def _read_by_places(new: Node, node: Node, root: Node, source: Node) -> None:
    """Lets a node read entries by their places in a copy that has the order that was recorded."""
    value, shown = root.meta["val"], node.meta["val"]
    order = sorted(range(value.ndim), key=lambda dim: (-value.stride(dim), value.shape[dim] == 1))
    flat = value.permute(order)
    if not flat.is_contiguous() or value.storage_offset():
        return  # with gaps, or part of something that isn't seen here
    graph = new.graph
    turned = graph.call_function(_ATEN.permute.default, (source, order))
    row = graph.call_function(_ATEN.reshape.default, (turned, [-1]))
    whole: Any = {"memory_format": torch.contiguous_format}
    copy = graph.call_function(_ATEN.clone.default, (row,), whole)
    new.args = copy, list(shown.shape), list(shown.stride()), shown.storage_offset()
