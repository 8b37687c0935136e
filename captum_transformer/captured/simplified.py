"""Graphs with fewer operations, which compute the same to the last bit."""

from collections.abc import Iterator, Mapping, Sequence
from operator import getitem
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

# A tensor without data like a result, or one for each of several; None if it isn't known.
Form: TypeAlias = Tensor | list[Tensor | None] | None
_ATEN = torch.ops.aten
# Returns its argument's memory, which its schema doesn't say.
_UNSAFE_VIEW = _ATEN._unsafe_view.default  # noqa: SLF001


def simplify(module: GraphModule, tensors: Sequence[Tensor]) -> None:
    """Removes operations whose results are known to be there already.

    These are views of views, views that show all of a tensor as it is, and views that are made
    twice. What is written into stays the memory that is written into.

    Args:
        module: the graph.
        tensors: the tensors that it is called with.
    """
    graph = module.graph
    forms = forms_of(module, tensors)
    fixed = _returned(graph) | _reshaped(graph)
    made: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node in fixed or not is_view(node):
            continue
        found = _shown_by_less(graph, node, forms)
        key = found.target, as_key(found.args), as_key(found.kwargs)
        if is_view(found):
            found = made.setdefault(key, found)
        if found is not node:
            node.replace_all_uses_with(found)
            graph.erase_node(node)
    for node in reversed(graph.nodes):
        if is_view(node) and not node.users:
            graph.erase_node(node)


def forms_of(module: GraphModule, tensors: Sequence[Tensor]) -> dict[Node, Form]:
    """Returns a tensor without data like the result of each operation, or a list of several.

    The offset of a view is known in relation to the memory that it shows a part of.
    """
    given = iter(tensors)
    forms: dict[Node, Form] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            forms[node] = _empty_like(next(given))
        elif node.op == "get_attr":
            forms[node] = _empty_like(getattr(module, node.target))
        elif node.target is getitem:
            whole = forms[node.args[0]]
            forms[node] = whole[node.args[1]] if isinstance(whole, list) else None
        elif node.op == "call_function":
            forms[node] = _form_of(node, forms)
    return forms


def is_view(node: Node) -> bool:
    """Returns whether a node shows the memory of its first argument, and writes nothing."""
    if node.op != "call_function":
        return False
    if node.target is _UNSAFE_VIEW:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable or not schema.arguments:
        return False
    first = schema.arguments[0].alias_info
    return first is not None and len(node.all_input_nodes) == 1


def _form_of(node: Node, forms: Mapping[Node, Form]) -> Form:
    value: Any = node.meta.get("val")
    several = isinstance(value, (list, tuple))
    known = [_empty_like(item) for item in (value if several else [value])]
    if is_view(node) and forms[node.all_input_nodes[0]] is not None:
        operation: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), forms.__getitem__)
        shown = operation(*args, **kwargs)
        shown = list(shown) if several else [shown]
        pairs = zip(shown, known, strict=True)
        known = shown if all(_is_like(*pair) for pair in pairs) else [None] * len(known)
    return known if several else known[0]


def _empty_like(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    size, strides, dtype = value.shape, value.stride(), value.dtype
    return torch.empty_strided(size, strides, dtype=dtype, device="meta")


def _is_like(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    alike = one.shape == other.shape and one.stride() == other.stride()
    return alike and (one.dtype, *_marks(one)) == (other.dtype, *_marks(other))


def _marks(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_conj(), tensor.is_neg()


def _is_same(one: Form, other: Form) -> bool:
    """Returns whether two views of the same memory show the same entries in the same order."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return _is_like(one, other) and bool(one.storage_offset() == other.storage_offset())


def _shown_by_less(graph: Graph, node: Node, forms: dict[Node, Form]) -> Node:
    """Returns a node that shows what a view shows, with as few views as possible in between."""
    wanted, sources = forms[node], [node]
    while is_view(sources[-1]) and isinstance(forms[sources[-1].all_input_nodes[0]], Tensor):
        sources.append(sources[-1].all_input_nodes[0])
    if not isinstance(wanted, Tensor):
        return node
    for source in reversed(sources[1:]):
        if _is_same(forms[source], wanted):
            return source
    for source in reversed(sources[1 if node.target is _UNSAFE_VIEW else 2 :]):
        given: Any = forms[source]
        for target, argument in _single_views(given, wanted):
            try:
                shown = target(given, argument)
            except RuntimeError:
                continue
            if _is_same(shown, wanted):
                with graph.inserting_before(node):
                    found = graph.call_function(target, (source, argument))
                found.meta = dict(node.meta)
                forms[found] = shown
                return found
    return node


def _single_views(given: Tensor, wanted: Tensor) -> Iterator[tuple[Any, list[int]]]:
    """Yields views that may show a tensor as wanted."""
    yield _ATEN.view.default, list(wanted.shape)
    if given.ndim == wanted.ndim:
        dims = list(zip(given.shape, given.stride(), strict=True))
        order = []
        for dim in zip(wanted.shape, wanted.stride(), strict=True):
            places = (p for p, other in enumerate(dims) if other == dim and p not in order)
            order.append(next(places, -1))
        if -1 not in order:
            yield _ATEN.permute.default, order
    if given.ndim <= wanted.ndim:
        yield _ATEN.expand.default, list(wanted.shape)


def _returned(graph: Graph) -> set[Node]:
    """Returns the nodes that are returned: these stay tensors of their own."""
    (output,) = graph.find_nodes(op="output")
    return set(output.all_input_nodes)


def _reshaped(graph: Graph) -> set[Node]:
    """Returns the nodes that share memory with a tensor whose form is changed in place."""
    found: set[Node] = set()
    for node in graph.nodes:
        if torch.Tag.inplace_view in getattr(node.target, "tags", ()):
            pending = list(node.all_input_nodes)
            while pending:
                one = pending.pop()
                if one not in found:
                    found.add(one)
                    views = [user for user in one.users if is_view(user) or user.target is getitem]
                    pending += views
                    if is_view(one) or one.target is getitem:
                        pending += one.all_input_nodes
    return found


def as_key(item: Any) -> Any:
    """Returns arguments such that equal ones of different types are not equal."""
    if isinstance(item, (list, tuple)):
        return tuple(map(as_key, item))
    if isinstance(item, dict):
        return tuple((name, as_key(value)) for name, value in item.items())
    return type(item), item
