"""The public interface to add operations, rules and methods to the library.

Names in this module follow the project's version policy: they change with a deprecation first.
Their implementation in `captum_transformer.trace` and `captum_transformer.rules` may change at any
time.

- :func:`describe_function` adds an entry to the table of torch functions, also for kernels and
  custom ``autograd.Function`` s of other packages.
- :func:`describe_linear` declares such a function to be a linear layer, whatever the form of its
  weights, such as quantised weights.
- :func:`straight_through` takes the derivative of step functions, such as rounding, to be one.
- :func:`operation` makes the trace see a Python function as one operation, whatever is inside, for
  example a custom ``autograd.Function`` or a kernel of another package.
- :func:`gamma` is LRP-gamma for chosen linear maps, for use in a :class:`GradientMethod`.
- :class:`RelevanceMethod`, :class:`GradientMethod` and :class:`MapMethod` are methods with your own
  rules or maps.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from captum_transformer.account import Reason
from captum_transformer.attr.attention_flow_method import (
    gradient_map,
    output_gradients,
)
from captum_transformer.attr.composed import GradientMethod, MapMethod, RelevanceMethod
from captum_transformer.attr.selection import Selection
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.gradient.tables import AH, IDENTITY, LN, UNIFORM, favoured, joined
from captum_transformer.rules.propagate import Shares, transposed
from captum_transformer.rules.relevance.homogeneous import z_rule
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.described import (
    DescribedFunction,
    describe_function,
    describe_linear,
    straight_through,
)
from captum_transformer.trace.entries import Entry, entry_of
from captum_transformer.trace.functions import ENTRY
from captum_transformer.trace.kinds import Does, Kind, Role
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.recorder import ForwardRules
from captum_transformer.trace.value import Value

__all__ = [
    "AH",
    "IDENTITY",
    "LN",
    "UNIFORM",
    "AttentionCall",
    "DescribedFunction",
    "Does",
    "GradientMethod",
    "Kind",
    "MapBlock",
    "MapMethod",
    "Operand",
    "Operation",
    "Reason",
    "RelevanceMethod",
    "Role",
    "Selection",
    "Shares",
    "Value",
    "describe_function",
    "describe_linear",
    "gamma",
    "gradient_map",
    "in_full",
    "joined",
    "operation",
    "output_gradients",
    "ratio",
    "straight_through",
    "transposed",
    "z_rule",
]

_SIGNALS = frozenset({"query", "key", "value"})

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def gamma(value: float, *, where: Callable[[Operation], bool] | None = None) -> ForwardRules:
    """LRP-gamma as a table for :class:`GradientMethod`, for some of a model's linear maps.

    It applies to linear layers, in any notation of a matrix product, and convolutions. Terms with
    the sign of the output are multiplied by one plus gamma; biases get their part, which
    reaches no input. Products whose weights depend on the inputs have other rules.
    To use it for all layers, see :class:`captum_transformer.AttnLRP`.

    Args:
        value: the gamma. With zero, a layer keeps its gradient, which is LRP-0.
        where: returns whether the rule applies to an operation. An operation has the dotted name of
            the module that ran it, ``operation.module``, and its ``operation.kind``. By default the
            rule applies to all.

    Returns:
        The table.

    Raises:
        InvalidInputError: if gamma is negative or not a number.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import extend
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> rules = extend.joined(
        ...     extend.gamma(0.25, where=lambda operation: operation.kind is extend.Kind.CONV),
        ...     extend.gamma(0.05, where=lambda operation: ".mlp." in operation.module),
        ...     extend.AH,
        ...     extend.LN,
        ... )
        >>> extend.GradientMethod(model, rules).attribute(torch.rand(1, 3, 32, 32), target=3).shape
        torch.Size([1, 3, 32, 32])
    """
    return favoured(value, where or (lambda _: True))


def operation(
    arguments: str, kind: Kind, *, layout: str | None = None
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Makes the trace see a Python function as one operation.

    Its gradient is autograd's, for example the one of a custom ``autograd.Function``.
    To explain a model that calls such a Function, replace it with the decorated function.

    For attention the arguments are ``query``, ``key`` and ``value``, and, if it has them,
    ``attn_mask``, ``dropout_p``, ``is_causal`` and ``scale``, as in
    :func:`torch.nn.functional.scaled_dot_product_attention`. The function's result is compared
    with the result of that one, and refused if it differs. For the flash-attn package::

        flash = extend.operation(
            "query/q key/k value/v dropout_p scale/softmax_scale is_causal/causal",
            extend.Kind.ATTENTION,
            layout="samples tokens heads features",
        )(flash_attn.flash_attn_func)

    Args:
        arguments: the canonical names of the arguments, as in :func:`describe_function`.
        kind: the kind of the operation, see :class:`Kind`.
        layout: for attention whose queries, keys, values and outputs do not have the layout
            ``"samples heads tokens features"``: the names of their dimensions.

    Returns:
        A decorator. Outside of explanations the function is unchanged.

    Raises:
        ValueError: if a layout is given for another kind, or has no heads, tokens and features.

    Example:
        >>> import torch
        >>> from captum_transformer import extend
        >>> class Cubed(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x**3
        ...     @staticmethod
        ...     def backward(ctx, gradient):
        ...         return 3 * ctx.saved_tensors[0] ** 2 * gradient
        >>> @extend.operation("input", extend.Kind.ENTRYWISE)
        ... def cubed(x):
        ...     return Cubed.apply(x)
        >>> cubed(torch.tensor([3.0]))
        tensor([27.])
    """
    entry = entry_of(kind, arguments)
    if kind is Kind.ATTENTION and not _SIGNALS.issubset(entry.parameters):
        raise ValueError(f"Attention has arguments query, key and value, got {arguments!r}.")
    order = back = None
    if layout is not None:
        order, back = _orders(kind, layout.split())

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        if order is None or back is None:
            return _seen(function, entry)
        canonical = _seen(_permuted(function, entry, back, order), entry)
        in_trace = _permuted(canonical, entry, order, back)

        @functools.wraps(function)
        def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            tensors = tuple(leaves(Tensor, (args, kwargs)))
            run = in_trace if has_torch_function(tensors) else function
            return run(*args, **kwargs)

        return called

    return decorate


def _seen(function: Callable[Parameters, Result], entry: Entry) -> Callable[Parameters, Result]:
    """Wraps a function so that the trace sees it as the operation that an entry describes."""

    @functools.wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        tensors = tuple(leaves(Tensor, (args, kwargs)))
        if has_torch_function(tensors):
            result: Result = handle_torch_function(called, tensors, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    setattr(called, ENTRY, entry)
    return called


def _orders(kind: Kind, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns the permutations from a layout of attention to the canonical one, and back."""
    last = ["heads", "tokens", "features"]
    lead = [name for name in names if name not in last]
    if kind is not Kind.ATTENTION or sorted(names) != sorted({*lead, *last}):
        raise ValueError(
            "A layout names each dimension of attention once, heads, tokens and features among "
            f"them, as 'samples tokens heads features'; got {' '.join(names)!r} for {kind.name}."
        )
    canonical = [*lead, *last]
    return [names.index(n) for n in canonical], [canonical.index(n) for n in names]


def _permuted(
    function: Callable[Parameters, Result], entry: Entry, forth: list[int], back: list[int]
) -> Callable[Parameters, Result]:
    """Wraps a function so that its signals are permuted before it runs, and its result after."""

    @functools.wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        def turned(name: str, argument: Any) -> Any:
            return argument.permute(forth) if name in _SIGNALS else argument

        names = itertools.chain(entry.parameters, itertools.repeat(""))
        given: Any = [turned(*pair) for pair in zip(names, args, strict=False)]
        named: Any = {n: turned(entry.aliases.get(n, n), a) for n, a in kwargs.items()}
        result: Any = function(*given, **named)
        if isinstance(result, tuple):
            return (result[0].permute(back), *result[1:])  # type: ignore[return-value]
        permuted: Result = result.permute(back)
        return permuted

    return called
