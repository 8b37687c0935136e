"""Graphs that compute only the rows that are read, and that are not zero."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from captum_transformer.captured.rows.moves import Item
from captum_transformer.captured.rows.rule import Rule, Supports
from captum_transformer.captured.rows.table import PARTED, rule_of
from captum_transformer.captured.rows.windows import (
    Box,
    Factor,
    Window,
    in_factors,
    length_of,
    lengths,
    meet,
    merged,
    size_of,
    volume,
    whole,
    within,
    worth_it,
)

_ATEN = torch.ops.aten
_EMPTY = _ATEN.new_empty_strided.default
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)  # noqa: SLF001
# Which boxes of a result are computed, and from which boxes of others.
_Plan: TypeAlias = dict[Node, dict[Box, list[tuple[Node, Box]]]]


def with_fewer_rows(module: GraphModule) -> GraphModule:
    """Returns a graph that computes the same from fewer rows, or the given one if that needs all.

    A score that is read from a class token needs one row of the last layer, and its gradient is
    zero for the other rows. This is found from what each operation does to rows, which a table
    says; of all other operations everything is computed. Parts of any dimension are found, not
    only of tokens.

    Results are equal up to rounding: kernels may add in another order if there are fewer rows.
    What isn't computed isn't seen: rows that nothing reads, or that are multiplied by zero, may be
    infinite or NaN, and no longer make the result NaN.

    Args:
        module: a graph of ATen operations without in-place ones, except writes into its arguments,
            with a fake tensor like each result.
    """
    mode = detect_fake_mode([n.meta["val"] for n in module.graph.nodes if "val" in n.meta])
    if mode is None:
        return module
    for node in module.graph.find_nodes(op="get_attr"):
        held = getattr(module, node.target)
        if isinstance(held, Tensor) and "val" not in node.meta:
            node.meta["val"] = mode.from_tensor(held)
    rules: dict[Node, Rule] = {}
    supports: dict[Node, Box | None] = {}
    for node in module.graph.nodes:
        rules[node] = rule_of(node, rules)
        supports[node] = rules[node].support(supports)
    plan = _plan(rules, supports)
    everything = {node: whole(rule.sizes) for node, rule in rules.items()}
    before = sum(rules[node].cost(everything[node], everything) for node in plan)
    after = sum(rules[node].cost(box, supports) for node, boxes in plan.items() for box in boxes)
    # Fewer entries alone don't pay: layers that were equal, and compiled once, might differ.
    return module if after >= before else _Rewritten(module, mode, rules, supports, plan).module


def _plan(rules: Mapping[Node, Rule], supports: Supports) -> _Plan:
    """Returns what has to be computed, found from the end of the graph to its start."""
    plan: _Plan = {}
    wanted: dict[Node, list[Box]] = defaultdict(list)
    for node, rule in reversed(list(rules.items())):
        boxes = [whole(rule.sizes)] if _stays(node) else merged(wanted.pop(node, []))
        if not rule.moves:
            support = supports[node]
            met = [None if support is None else meet(box, support) for box in boxes]
            boxes = [box for box in met if box is not None]
        found = dict(rule.needs(box, supports) for box in merged(map(worth_it, boxes)))
        if found:
            plan[node] = found
        for read in found.values():
            for source, box in read:
                wanted[source].append(box)
    return dict(reversed(plan.items()))


def _stays(node: Node) -> bool:
    """Returns whether a node is more than its result."""
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


class _Rewritten:
    """A graph that computes what is planned.

    Attributes:
        module: the graph.
    """

    def __init__(
        self,
        module: GraphModule,
        mode: Any,
        rules: Mapping[Node, Rule],
        supports: Supports,
        plan: _Plan,
    ) -> None:
        self._graph = Graph()
        self._mode, self._rules, self._supports = mode, rules, supports
        self._made: dict[Node, dict[Box, Node]] = defaultdict(dict)
        self._fetched: dict[tuple[Node, Box], Node] = {}
        for node, boxes in plan.items():
            for box, read in boxes.items():
                self._made[node][box] = self._computed(node, box, read)
        self._graph.lint()
        self.module = GraphModule(module, self._graph, "FewerRows")

    def _computed(self, node: Node, box: Box, read: Sequence[tuple[Node, Box]]) -> Node:
        rule = self._rules[node]
        if box == whole(rule.sizes):
            inputs = {one: self._whole(one) for one in node.all_input_nodes}
            if type(rule) is Rule:
                inputs = {one: self._as_before(one, self._fetch(one, part)) for one, part in read}
            known = {one: new for one, new in inputs.items() if new is not None}
            if len(known) == len(inputs):
                return self._copied(node, known)
        if isinstance(rule, Item):
            ((source, part),) = read
            have, several = self._holding(source, part)
            item = self._emit(node.target, (several, node.args[1]))
            return self._cut(item, rule.of(have), box)
        return rule.build(box, [self._fetch(one, part) for one, part in read], self._emit)

    def _whole(self, node: Node) -> Node | None:
        """Returns the whole of a result, if it is computed."""
        made = self._made[node]
        every = whole(self._rules[node].sizes)
        if every not in made and node.target in PARTED:
            source: Any = node.args[0]
            given = self._whole(source)
            if given is not None:
                made[every] = self._copied(node, {source: given})
        return made.get(every)

    def _fetch(self, node: Node, box: Box) -> Node:
        """Returns a box of a result, with zeros where it was not computed."""
        key = node, box
        if key not in self._fetched:
            support = self._supports[node]
            if box in self._made[node]:
                self._fetched[key] = self._made[node][box]
            elif support is None or meet(box, support) is None:
                self._fetched[key] = self._zeros(node.meta["val"], lengths(box))
            else:
                have, made = self._holding(node, box)
                self._fetched[key] = self._cut(made, have, box)
        return self._fetched[key]

    def _holding(self, node: Node, box: Box) -> tuple[Box, Node]:
        """Returns what was computed and has all of a box that may be other than zero."""
        support = self._supports[node]
        assert support is not None
        held = [
            (have, made)
            for have, made in self._made[node].items()
            if all(map(_holds, have, box, support))
        ]
        return min(held, key=lambda item: volume(item[0]))

    def _cut(self, made: Node, have: Box, want: Box) -> Node:
        """Turns one box of a result into another one, with zeros around it."""
        if have == want:
            return made
        pairs = list(map(_pairs, have, want))
        known = [pair for pair in pairs if pair is not None]
        if len(known) < len(pairs):
            every = whole(map(size_of, want))
            return self._cut(self._cut(made, have, every), every, want)
        split = any(len(pair) != 1 for pair in known)
        flat = [pair for several in known for pair in several]
        if split:
            made = self._emit(_ATEN.view.default, (made, [h.stop - h.start for h, _ in flat]))
        pads: list[int] = []
        for dim, (one, other) in enumerate(flat):
            start, stop = max(one.start, other.start), min(one.stop, other.stop)
            if start >= stop:
                return self._zeros(made.meta["val"], lengths(want))
            if (start, stop) != (one.start, one.stop):
                part = (dim, start - one.start, stop - one.start)
                made = self._emit(_ATEN.slice.Tensor, (made, *part))
            pads = [start - other.start, other.stop - stop, *pads]
        if any(pads):
            made = self._emit(_ATEN.constant_pad_nd.default, (made, pads))
        return self._emit(_ATEN.view.default, (made, lengths(want))) if split else made

    def _as_before(self, node: Node, made: Node) -> Node:
        """Returns a whole result in the order in memory that it had in the old graph.

        An operation that isn't known may read entries by their places in memory.
        """
        if not _differ(node, made):
            return made
        value = node.meta["val"]
        like = (made, list(value.shape), list(value.stride()))
        return self._emit(_ATEN.copy.default, (self._emit(_EMPTY, like), made))

    def _zeros(self, like: Any, shape: Sequence[int]) -> Node:
        options = {"dtype": like.dtype, "device": like.device, "pin_memory": False}
        return self._emit(_ATEN.full.default, (list(shape), 0), options)

    def _copied(self, node: Node, given: Mapping[Node, Node]) -> Node:
        """Adds an operation of the old graph, which reads what is given."""
        if _stays(node) or not any(_differ(*pair) for pair in given.items()):
            return self._graph.node_copy(node, given.__getitem__)
        return self._emit(node.target, *map_arg((node.args, node.kwargs), given.__getitem__))

    def _emit(self, target: Any, args: tuple[Any, ...], kwargs: Any = None) -> Node:
        given, named = map_arg((args, kwargs or {}), lambda one: one.meta["val"])
        if target in _VIEWS and not _is_viewable(*given):
            target = _ATEN.reshape.default
        with self._mode:
            value = target(*given, **named)
        node = self._graph.call_function(target, args, kwargs)
        node.meta["val"] = value
        return node


def _is_viewable(given: Tensor, shape: Sequence[int]) -> bool:
    """Returns whether a tensor's entries are in memory so that a view has the shape."""
    # Fake tensors raise no error.
    try:
        torch.empty_strided(given.shape, given.stride(), device="meta").view(shape)
    except RuntimeError:
        return False
    return True


def _differ(one: Node, other: Node) -> bool:
    pairs = zip(*(pytree.tree_leaves(node.meta.get("val")) for node in (one, other)), strict=True)
    return any(isinstance(a, Tensor) and a.stride() != b.stride() for a, b in pairs)


def _holds(have: Window, want: Window, support: Window) -> bool:
    """Returns whether all of a window that may be other than zero is in another one."""
    met = meet((want,), (support,))
    return any(within(one, (have,)) for one in ((want,), (support,), met or (want,)))


def _pairs(have: Window, want: Window) -> list[tuple[Factor, Factor]] | None:
    """Returns the factors of two windows next to each other, or None if they can't be equal."""
    if have == want:
        every = Factor(length_of(have), 0, length_of(have))
        return [(every, every)]
    split = in_factors(have, want)
    if split is not None:
        return list(zip(split, want, strict=True))
    split = in_factors(want, have)
    return None if split is None else list(zip(have, split, strict=True))
