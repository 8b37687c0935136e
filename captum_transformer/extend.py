"""The public way to add what the library does not know: operations, rules, methods.

Names in this module follow the project's version policy: they change with a deprecation first.
What lies behind them, in `captum_transformer.trace` and `captum_transformer.rules`, may change at
any time.

- :func:`describe_function` puts a line into the table of torch functions.
- :func:`operation` lets the trace see a Python function as one operation, whatever is inside: a
  custom ``autograd.Function``, say, or a kernel of another package.
- :class:`RelevanceMethod`, :class:`GradientMethod` and :class:`MapMethod` are methods with rules or
  maps of one's own.
"""

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from captum_transformer.account import Reason
from captum_transformer.attr.attention_flow_method import (
    Selection,
    gradient_map,
    output_gradients,
)
from captum_transformer.attr.composed import GradientMethod, MapMethod, RelevanceMethod
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.gradient.tables import AH, IDENTITY, LN, UNIFORM, joined
from captum_transformer.rules.propagate import Shares, transposed
from captum_transformer.rules.relevance.homogeneous import z_rule
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.bodies import WRITTEN_OUT
from captum_transformer.trace.catalogue import ENTRIES, entry_of
from captum_transformer.trace.functions import ENTRY, bare_name, describe
from captum_transformer.trace.kinds import Does, Kind, Role
from captum_transformer.trace.nested import leaves
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operand, Operation, Value

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
    "gradient_map",
    "in_full",
    "joined",
    "operation",
    "output_gradients",
    "ratio",
    "transposed",
    "z_rule",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class DescribedFunction:
    """A line that was put into the table of operations; as a context manager it goes on leaving."""

    def __init__(self, name: str) -> None:
        self.name = name

    def remove(self) -> None:
        """Takes the line out again."""
        ENTRIES.pop(self.name, None)
        describe.cache_clear()

    def __enter__(self) -> "DescribedFunction":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def describe_function(
    function: Callable[..., Any], arguments: str, kind: Kind
) -> DescribedFunction:
    """Says what a torch function is that the table of operations lacks.

    All methods follow it from then on, as they follow the others of its kind.

    Args:
        function: the function, such as ``torch.special.airy_ai``.
        arguments: the canonical names of its arguments in their order, separated by blanks. The
            signal is called ``input``, a second one ``other``, a dimension ``dim``; tensors that
            are no signals are called ``weight``, ``bias``, ``index`` or ``mask``. A slash adds
            another name: ``"input dim/axis"``.
        kind: what it is, see :class:`Kind`.

    Returns:
        A handle, whose ``remove`` takes the line out again; as a context manager it does so on
        leaving.

    Raises:
        ValueError: if the table has the function already.

    Example:
        >>> import torch
        >>> from captum_transformer import extend
        >>> with extend.describe_function(torch.special.airy_ai, "input", extend.Kind.ENTRYWISE):
        ...     pass  # explain a model that uses it
    """
    name = bare_name(function)
    if name in ENTRIES:
        raise ValueError(
            f"`{name}` is in the table already, as {ENTRIES[name].kind.name}. A method that treats "
            "it in another way changes the rule for its kind."
        )
    if name in WRITTEN_OUT:
        raise ValueError(f"`{name}` is known already: it is explained as what it is made of.")
    ENTRIES[name] = entry_of(kind, arguments)
    describe.cache_clear()
    return DescribedFunction(name)


def operation(
    arguments: str, kind: Kind
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Makes a Python function one operation for the trace, whatever it does inside.

    Its gradient is the one that autograd has for it: that of a custom ``autograd.Function``, say.
    A model that calls such a Function is explained when the decorated function takes its place.

    Args:
        arguments: the canonical names of its arguments, as in :func:`describe_function`.
        kind: what it is, see :class:`Kind`.

    Returns:
        A decorator. Outside of explanations the function does what it did.

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

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            tensors = tuple(leaves(Tensor, (args, kwargs)))
            if has_torch_function(tensors):
                result: Result = handle_torch_function(called, tensors, *args, **kwargs)
                return result
            return function(*args, **kwargs)

        setattr(called, ENTRY, entry_of(kind, arguments))
        return called

    return decorate
