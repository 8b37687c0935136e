"""What is known of ATen's operations: a line for each."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import getitem
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from captum_transformer.captured.rows.letters import ONE, Letters
from captum_transformer.captured.rows.moves import Filled, Item, Joined, Part, View, Written
from captum_transformer.captured.rows.rule import Rule, shape_of

_ATEN = torch.ops.aten
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
# Products of arguments, by their places.
_Terms: TypeAlias = Sequence[Sequence[int]]


def rule_of(node: Node, rules: dict[Node, Rule]) -> Rule:
    """Returns what is known of an operation.

    Args:
        node: the operation.
        rules: the same of those before it.
    """
    target: Any = node.target
    if node.op != "call_function" or not _are_plain(node):
        return Rule(node)
    if target is getitem:
        return _item(node, rules)
    rule = _TABLE.get(target, _pointwise if _is_pointwise(target) else Rule)
    try:
        return rule(node)
    except ValueError:  # a form that isn't known
        return Rule(node)


def _is_pointwise(target: Any) -> bool:
    schema, tags = getattr(target, "_schema", None), getattr(target, "tags", ())
    known = schema is not None and not schema.is_mutable and torch.Tag.pointwise in tags
    return known and torch.Tag.nondeterministic_seeded not in tags


def _are_plain(node: Node) -> bool:
    """Returns whether all that a node makes and reads are tensors with entries."""
    values = pytree.tree_leaves([one.meta.get("val") for one in (node, *node.all_input_nodes)])
    return all(
        isinstance(value, Tensor) and value.numel() > 0 and value.layout is torch.strided
        for value in values
    )


def _arguments(node: Node) -> dict[str, Any]:
    """Returns all arguments by name."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    found = {argument.name: argument.default_value for argument in schema.arguments}
    names = [argument.name for argument in schema.arguments]
    return {**found, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _spread(node: Node, letters: str) -> str:
    """Returns the letters of a tensor that is broadcast to those given."""
    shape = shape_of(node)
    first = len(letters) - len(shape)
    if first < 0:
        raise ValueError(letters, shape)
    pairs = zip(letters[first:], shape, strict=True)
    return "".join(ONE if size == 1 else letter for letter, size in pairs)


def _pointwise(node: Node, terms: _Terms | None = None, *, moves: bool = False) -> Letters:
    """Each entry of the result is made of the same entry of each argument."""
    tensors = {n: one for n, one in enumerate(node.args) if isinstance(one, Node)}
    single = isinstance(node.meta["val"], Tensor)
    if not single or set(tensors.values()) != set(node.all_input_nodes):
        raise ValueError(node)
    if terms is None:
        terms = [[n] for n in tensors] if _keeps_zeros(node) else None
    else:
        terms = [[n for n in term if n in tensors] for term in terms]
    letters = _ALPHABET[: len(shape_of(node))]
    read = {n: _spread(one, letters) for n, one in tensors.items()}
    return Letters(node, read, letters, free=letters, terms=terms, moves=moves)


def _keeps_zeros(node: Node) -> bool:
    """Returns whether an operation makes zero of zeros, with its other arguments."""

    def zero(one: Node) -> Tensor:
        return torch.zeros((), dtype=one.meta["val"].dtype)

    target: Any = node.target
    args, kwargs = map_arg((node.args, node.kwargs), zero)
    try:
        return bool((target(*args, **kwargs) == 0).all())
    except RuntimeError:  # of a single number, it isn't known
        return False


def _permuted(node: Node, order: Callable[[list[int], dict[str, Any]], Sequence[int]]) -> Letters:
    (source,) = node.all_input_nodes
    letters = _ALPHABET[: len(shape_of(source))]
    places = order(list(range(len(letters))), _arguments(node))
    made = "".join(letters[place] for place in places)
    return Letters(node, {0: letters}, made, free=letters, terms=[[0]], moves=True)


def _transposed(dims: list[int], given: dict[str, Any]) -> list[int]:
    one, other = given["dim0"], given["dim1"]
    dims[one], dims[other] = dims[other], dims[one]
    return dims


def _along(
    node: Node, *, zero: bool = False, summed: bool = False, results: int = 1, kept: bool = False
) -> Letters:
    """Mixes the entries along some dimensions, which are mostly reduced.

    Args:
        node: the operation.
        zero: whether zeros give zero.
        summed: whether it is their sum.
        results: how many results there are.
        kept: whether all dimensions are kept.
    """
    given = _arguments(node)
    (source,) = node.all_input_nodes
    letters = _ALPHABET[: len(shape_of(source))]
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or list(range(len(letters)))
    mixed = {letters[dim] for dim in dims}
    left = ONE if given.get("keepdim") else ""
    made = letters if kept else "".join(left if one in mixed else one for one in letters)
    free = "".join(letter for letter in letters if letter not in mixed)
    several = made if results == 1 else [made] * results
    terms, sums = [[0]] if zero else None, "".join(mixed) if summed else ""
    return Letters(node, {0: letters}, several, free=free, summed=sums, terms=terms)


def _product(node: Node, *factors: str, made: str, added: bool = False) -> Letters:
    """A sum of products of two arguments, often added to the first."""
    first: Any = node.args[0]
    read = {0: _spread(first, made)} if added else {}
    read |= {len(read) + n: letters for n, letters in enumerate(factors)}
    terms = [[0], [1, 2]] if added else [[0, 1]]
    return Letters(node, read, made, free=made, summed="k", terms=terms, product=True)


def _attention(
    node: Node, read: Sequence[str], made: Sequence[str], zero: _Terms | None
) -> Letters:
    """Queries attend to keys, each by itself; the gradient is zero for queries that got none."""
    given = _arguments(node)
    places: dict[Any, str] = dict(enumerate(read))
    if given["dropout_p"]:
        raise ValueError(node)
    if given["attn_mask"] is not None:
        places["attn_mask"] = _spread(given["attn_mask"], "bhnm")
    # The place of a query decides what it sees if later keys are hidden.
    free = "bh" if given["is_causal"] else "bhn"
    return Letters(node, places, made, free=free, terms=zero, product=True)


def _item(node: Node, rules: dict[Node, Rule]) -> Rule:
    source: Any
    number: Any
    source, number = node.args
    rule = rules[source]
    if isinstance(rule, Letters):
        return Item(node, rule, number)
    if source.target not in PARTED:
        return Rule(node)
    given = _arguments(source)
    whole, dim = source.args[0], given["dim"]
    if source.target is _ATEN.unbind.int:
        return Part(node, whole, dim, number, one=True)
    sizes = given["split_sizes"] if "split_sizes" in given else [given["split_size"]] * number
    return Part(node, whole, dim, [0, *accumulate(sizes)][number], one=False)


def _part(node: Node) -> Rule:
    given = _arguments(node)
    if given.get("step", 1) != 1:
        raise ValueError(node)
    one = "index" in given
    start = given["index"] if one else given["start"] or 0
    return Part(node, given["self"], given["dim"], start, one=one)


def _written(node: Node) -> Rule:
    given = _arguments(node)
    _require_one_dtype(node)
    if given.get("step", 1) != 1:
        raise ValueError(node)
    one = "index" in given
    start = given["index"] if one else given["start"] or 0
    return Written(node, given["self"], given["src"], given["dim"], start, one=one)


def _joined(node: Node) -> Rule:
    given = _arguments(node)
    _require_one_dtype(node)
    if any(len(shape_of(one)) != len(shape_of(node)) for one in node.all_input_nodes):
        raise ValueError(node)
    return Joined(node, given["tensors"], given["dim"])


def _require_one_dtype(node: Node) -> None:
    if len({one.meta["val"].dtype for one in (node, *node.all_input_nodes)}) > 1:
        raise ValueError(node)


def _view(node: Node) -> Rule:
    (source,) = node.all_input_nodes
    return View(node, source)


# Operations with several results that are parts of their argument.
PARTED = (_ATEN.unbind.int, _ATEN.split_with_sizes.default, _ATEN.split.Tensor)

_TABLE: dict[Any, Callable[[Node], Rule]] = {
    # Pointwise operations of which zero isn't all that makes zero: others are known by their tag.
    _ATEN.mul.Tensor: partial(_pointwise, terms=[[0, 1]]),
    _ATEN.div.Tensor: partial(_pointwise, terms=[[0]]),
    _ATEN.where.self: partial(_pointwise, terms=[[1], [2]]),
    _ATEN.addcmul.default: partial(_pointwise, terms=[[0], [1, 2]]),
    _ATEN.addcdiv.default: partial(_pointwise, terms=[[0], [1]]),
    _ATEN.bitwise_and.Tensor: partial(_pointwise, terms=[[0, 1]]),
    _ATEN.logical_and.default: partial(_pointwise, terms=[[0, 1]]),
    _ATEN.clone.default: partial(_pointwise, terms=[[0]]),
    # The second is written over the first.
    _ATEN.copy.default: partial(_pointwise, terms=[[1]]),
    _ATEN.expand.default: partial(_pointwise, terms=[[0]], moves=True),
    # Dimensions in another order.
    _ATEN.permute.default: partial(_permuted, order=lambda _, given: given["dims"]),
    _ATEN.transpose.int: partial(_permuted, order=_transposed),
    _ATEN.t.default: partial(_permuted, order=lambda dims, _: dims[::-1]),
    # Reductions, and operations that mix entries along a dimension.
    _ATEN.sum.dim_IntList: partial(_along, zero=True, summed=True),
    _ATEN.sum.default: partial(_along, zero=True, summed=True),
    _ATEN.mean.dim: partial(_along, zero=True),
    _ATEN.amax.default: partial(_along, zero=True),
    _ATEN.amin.default: partial(_along, zero=True),
    _ATEN.any.dim: partial(_along, zero=True),
    _ATEN.any.dims: partial(_along, zero=True),
    _ATEN.all.dim: partial(_along, zero=True),
    _ATEN.all.dims: partial(_along, zero=True),
    _ATEN.prod.dim_int: partial(_along, zero=True),
    _ATEN.argmax.default: _along,
    _ATEN.argmin.default: _along,
    _ATEN.var_mean.correction: partial(_along, zero=True, results=2),
    _ATEN._softmax.default: partial(_along, kept=True),
    _ATEN._log_softmax.default: partial(_along, kept=True),
    _ATEN.cumsum.default: partial(_along, zero=True, kept=True),
    # Products.
    _ATEN.mm.default: lambda n: _product(n, "nk", "km", made="nm"),
    _ATEN.addmm.default: lambda n: _product(n, "nk", "km", made="nm", added=True),
    _ATEN.bmm.default: lambda n: _product(n, "bnk", "bkm", made="bnm"),
    _ATEN.baddbmm.default: lambda n: _product(n, "bnk", "bkm", made="bnm", added=True),
    # Attention.
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default: partial(
        _attention, read=("bhnd", "bhmd", "bhme"), made=("bhne", "bhn"), zero=None
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default: partial(
        _attention,
        read=("bhne", "bhnd", "bhmd", "bhme", "bhne", "bhn"),
        made=("bhnd", "bhmd", "bhme"),
        zero=((0,),),
    ),
    # The same entries in the same order.
    _ATEN.view.default: _view,
    _ATEN._unsafe_view.default: _view,
    _ATEN.reshape.default: _view,
    _ATEN.unsqueeze.default: _view,
    _ATEN.squeeze.default: _view,
    _ATEN.squeeze.dim: _view,
    _ATEN.squeeze.dims: _view,
    # Parts, and what is made of parts.
    _ATEN.select.int: _part,
    _ATEN.slice.Tensor: _part,
    _ATEN.select_scatter.default: _written,
    _ATEN.slice_scatter.default: _written,
    _ATEN.cat.default: _joined,
    _ATEN.full.default: lambda node: Filled(node, 1),
    _ATEN.scalar_tensor.default: lambda node: Filled(node, 0),
}
