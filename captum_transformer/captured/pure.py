"""Graphs without in-place operations, whose tensors keep their order in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from captum_transformer.captured.shared import aliased


def pure_graph(
    graph: GraphModule, tensors: Sequence[Tensor], decompositions: Mapping[Any, Any]
) -> GraphModule:
    """Returns the graph without in-place operations, except writes into its arguments.

    Args:
        graph: a graph of ATen operations.
        tensors: the tensors that it is called with.
        decompositions: what writes operations as others.
    """
    pure = make_fx(
        torch.func.functionalize(_AsRecorded(graph).run, remove="mutations"),
        decomposition_table=dict(decompositions),
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )(*tensors)
    pure.graph.eliminate_dead_code()
    for node in pure.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
        pure.graph.erase_node(node)
    return pure


class _AsRecorded(Interpreter):
    """Runs a graph, and keeps the order in memory that each tensor had when it was recorded.

    Without writes, and written out, an operation may choose another one. Views read entries by
    their places in memory, so later ones would fail or show other entries.
    """

    def run_node(self, node: Node) -> Any:
        """Runs an operation."""
        written = aliased(node, written=True)
        if torch.Tag.inplace_view in getattr(node.target, "tags", ()):
            return super().run_node(node)
        if written:
            return self._write(node, written)
        found = super().run_node(node)
        if not hasattr(node.target, "_schema") or aliased(node, written=False):
            return found
        return pytree.tree_map(_with_strides, found, node.meta.get("val", found))

    def _write(self, node: Node, written: Sequence[Node]) -> Any:
        """Runs an operation on copies first; if these get another order, they are copied back."""
        tensors = {one: self.env[one] for one in written}
        copies = {one: tensor.clone() for one, tensor in tensors.items()}
        strides = [copy.stride() for copy in copies.values()]
        self.env.update(copies)
        found = super().run_node(node)
        self.env.update(tensors)
        pairs = zip(copies.values(), tensors.values(), strides, strict=True)
        if all(one.stride() == by or one.shape != other.shape for one, other, by in pairs):
            return super().run_node(node)  # what has run on copies is not read, and left out
        back = {id(copies[one]): tensors[one].copy_(copies[one]) for one in written}
        return pytree.tree_map(lambda one: back.get(id(one), one), found)


def _with_strides(found: Any, recorded: Any) -> Any:
    """Returns a result with the strides of another one, copied if it has others."""
    if not isinstance(found, Tensor) or _in_memory(found) == _in_memory(recorded):
        return found
    return found.new_empty_strided(found.shape, recorded.stride()).copy_(found)


def _in_memory(tensor: Tensor) -> Any:
    """Returns the strides along which a tensor has entries, None if it has no strides."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return None
    return [by for size, by in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
