"""Functions whose kind depends on their arguments."""

from collections.abc import Callable, Mapping
from typing import Any

from captum_transformer.trace.kinds import Kind


def _by_exponent(arguments: Mapping[str, Any]) -> Kind:
    exponent = arguments.get("exponent")
    negative = isinstance(exponent, (int, float)) and exponent < 0
    return Kind.RECIPROCAL if negative else Kind.ENTRYWISE


def _by_bounds(arguments: Mapping[str, Any]) -> Kind:
    """Clamping to a signal is a maximum or minimum; with zero as the only bound, it is a ReLU."""
    bounds = [bound for name in ("min", "max") if (bound := arguments.get(name)) is not None]
    if any(getattr(bound, "value", None) is not None for bound in bounds):
        return Kind.MAXIMUM
    alone = len(bounds) == 1 and isinstance(bounds[0], (int, float)) and bounds[0] == 0
    return Kind.HOMOGENEOUS if alone else Kind.ENTRYWISE


def _by_numerator(arguments: Mapping[str, Any]) -> Kind:
    if arguments.get("rounding_mode") is not None:
        return Kind.ENTRYWISE
    numerator = arguments.get("input")
    return Kind.DIV if getattr(numerator, "value", None) is not None else Kind.RECIPROCAL


def _by_signals(arguments: Mapping[str, Any]) -> Kind:
    """With one signal and a constant, the function is entry-wise: for zero, ``F.softplus``."""
    given = (arguments.get("input"), arguments.get("other"))
    signals = sum(getattr(one, "value", None) is not None for one in given)
    return Kind.SMOOTH_MAXIMUM if signals > 1 else Kind.ENTRYWISE


def _by_accumulation(arguments: Mapping[str, Any]) -> Kind:
    if arguments.get("reduce") not in (None, "add"):
        return Kind.UNKNOWN
    added = arguments.get("accumulate") or arguments.get("reduce")
    return Kind.SUM_AT_INDICES if added else Kind.MOVE


BY_ARGUMENTS: dict[str, Callable[[Mapping[str, Any]], Kind]] = {
    "pow": _by_exponent,
    "float_power": _by_exponent,
    **dict.fromkeys(("div", "truediv", "true_divide", "divide", "rdiv", "rtruediv"), _by_numerator),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), _by_bounds),
    **dict.fromkeys(("logaddexp", "logaddexp2"), _by_signals),
    "index_put": _by_accumulation,
    "put": _by_accumulation,
    "scatter": _by_accumulation,
}


def by_source(arguments: Mapping[str, Any]) -> Kind:
    """Returns the kind of a lookup.

    It is EMBEDDING for token ids in a constant table, ENTRYWISE if the table is a list of other
    ids, as of a smaller vocabulary, and MOVE for everything else.
    """
    index = arguments.get("index", arguments.get("brackets"))
    table = arguments.get("input")
    if getattr(table, "value", None) is not None or not _holds_ids(index):
        return Kind.MOVE
    return Kind.ENTRYWISE if _lists_ids(table) else Kind.EMBEDDING


def _lists_ids(table: Any) -> bool:
    """Whether a table has one integer for each id."""
    tensor = getattr(table, "tensor", None)
    if tensor is None or tensor.ndim != 1:
        return False
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)


def _holds_ids(index: Any) -> bool:
    """Whether the index of a lookup is, or contains, token ids."""
    value = getattr(index, "value", None)
    return value is not None or (isinstance(index, (tuple, list)) and any(map(_holds_ids, index)))
