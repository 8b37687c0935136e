"""Descriptions, by a user or for a package, of functions that are not in the table."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import Function

from captum_transformer.trace.applied import APPLIED
from captum_transformer.trace.bodies import WRITTEN_OUT
from captum_transformer.trace.catalogue import ENTRIES
from captum_transformer.trace.entries import entry_of
from captum_transformer.trace.functions import ENTRY, KERNELS, bare_name, describe
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.linear_maps import LAYERS, LinearMap
from captum_transformer.trace.step_functions import STRAIGHT_THROUGH, rounds


class DescribedFunction:
    """A line added to the table of operations; as a context manager, it is removed on exit."""

    def __init__(self, name: str, undo: Callable[[], Any]) -> None:
        self.name = name
        self._undo = undo

    def remove(self) -> None:
        """Removes the line from the table."""
        self._undo()
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
    function: Callable[..., Any] | type[Function], arguments: str, kind: Kind
) -> DescribedFunction:
    """Describes a function that isn't in the table of operations.

    From then on, all methods treat the function like other functions of its kind.

    Args:
        function: a torch function such as ``torch.special.airy_ai``, a kernel of another library
            such as ``torch.ops.library.kernel``, or a custom ``torch.autograd.Function`` class,
            which is recognized wherever it is applied.
        arguments: the canonical names of the arguments in order, separated by spaces. The signal is
            called ``input``, a second signal ``other``, a dimension ``dim``; tensors that are not
            signals are called ``weight``, ``bias``, ``index`` or ``mask``. A slash adds another
            name for an argument: ``"input dim/axis"``.
        kind: the kind of the function, see :class:`Kind`.

    Returns:
        A handle with a method ``remove`` that removes the description. As a context manager, the
        handle removes it on exit.

    Raises:
        ValueError: if the function is already known.

    Example:
        >>> import torch
        >>> from captum_transformer import extend
        >>> with extend.describe_function(torch.special.airy_ai, "input", extend.Kind.ENTRYWISE):
        ...     pass  # explain a model that uses it
    """
    entry = entry_of(kind, arguments)
    if _is_custom(function):
        name = _refuse_known(function)
        setattr(APPLIED.add(function), ENTRY, entry)
        described = DescribedFunction(name, lambda: APPLIED.remove(function))
    elif isinstance(function, (OpOverload, OpOverloadPacket)) and not _is_of_torch(function):
        name = _refuse_known(function)
        KERNELS[function] = entry
        described = DescribedFunction(name, lambda: KERNELS.pop(function, None))
    else:
        name = bare_name(function)
        if name in ENTRIES:
            raise ValueError(
                f"`{name}` is in the table already, as {ENTRIES[name].kind.name}. A method that "
                "treats it in another way changes the rule for its kind."
            )
        if name in WRITTEN_OUT:
            raise ValueError(f"`{name}` is already supported, through the functions that it calls.")
        ENTRIES[name] = entry
        described = DescribedFunction(name, lambda: ENTRIES.pop(name, None))
    describe.cache_clear()
    return described


def describe_linear(
    function: Callable[..., Any] | type[Function],
    arguments: str,
    *,
    weight: Callable[..., Tensor] | None = None,
    bias: Callable[..., Tensor | None] | None = None,
) -> DescribedFunction:
    """Describes a function as a linear layer whose weights may have any format.

    Use it for kernels for quantised weights, and for the custom Functions that packages wrap them
    in. From then on, all methods treat the function as ``F.linear`` with these weights. The model
    still computes with the function itself; if the function has no derivative, it gets the
    derivative of the linear layer. Rounding of the signal inside the function is ignored.

    On the first call, the function's output for one token is compared with the linear layer's.

    Args:
        function: a kernel of another library such as ``torch.ops.library.kernel``, or a custom
            ``torch.autograd.Function`` class, which is recognized wherever it is applied.
        arguments: the names of the arguments in order, separated by spaces: the signal is called
            ``input``, a bias ``bias``, and all others have different names. A slash adds another
            name for an argument.
        weight: a function that returns the weights ``(outputs, inputs)`` of a call as a plain
            tensor. It receives the arguments of the call, with None for the signal, and is called
            when a rule reads the weights. By default, the weights are computed by passing the
            identity matrix through the function, without a bias.
        bias: a function that receives the arguments of a call and returns its bias. Needed only if
            no argument is the bias.

    Returns:
        A handle with a method ``remove`` that removes the description. As a context manager, the
        handle removes it on exit.

    Raises:
        ValueError: if ``arguments`` doesn't contain ``input``, if the function is already
            described, or if it is neither a kernel nor an ``autograd.Function``.

    Example:
        >>> import torch
        >>> from captum_transformer import extend
        >>> class Int8Linear(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x, numbers, scale):
        ...         ctx.save_for_backward(numbers, scale)
        ...         return (x @ numbers.to(x.dtype).t()) * scale
        ...     @staticmethod
        ...     def backward(ctx, gradient):
        ...         numbers, scale = ctx.saved_tensors
        ...         return (gradient * scale) @ numbers.to(gradient.dtype), None, None
        >>> described = extend.describe_linear(
        ...     Int8Linear,
        ...     "input numbers scale",
        ...     weight=lambda _, numbers, scale: numbers * scale[:, None],
        ... )
        >>> described.remove()
    """
    entry = entry_of(Kind.PRODUCT, arguments)
    if "input" not in entry.parameters:
        raise ValueError(f"One of the arguments is the signal, `input`; got {arguments!r}.")
    name = _refuse_known(function)
    if _is_custom(function):
        key: Any = APPLIED.add(function)
        run: Any = function.apply
    elif isinstance(function, (OpOverload, OpOverloadPacket)):
        key = run = function
    else:
        raise ValueError(
            "A linear layer by description is a kernel or an `autograd.Function`; of a Python "
            "function only the torch functions inside it are seen, or what `extend.operation` "
            f"makes one. Got {function!r}."
        )
    LAYERS[key] = LinearMap(name, run, entry, weight, bias, derived=run is not function)

    def undo() -> None:
        LAYERS.pop(key, None)
        if _is_custom(function):
            APPLIED.remove(function)

    describe.cache_clear()
    return DescribedFunction(name, undo)


def straight_through(*functions: Callable[..., Any] | torch.dtype) -> DescribedFunction:
    """Uses a straight-through estimate for step functions such as rounding.

    The derivative of a step function is zero, so the gradient is lost there, and methods that need
    the gradient refuse the function. With a straight-through estimate, the derivative is taken to
    be one, as in the training of models with quantised activations. Methods that have their own
    rule for entry-wise functions, such as :class:`captum_transformer.AttnLRP`, use that rule.

    Args:
        *functions: ``torch.round``, ``floor``, ``ceil``, ``trunc``, ``fix`` or ``sign``, in any
            spelling, or an integer dtype such as ``torch.int8``, which stands for casts to this
            dtype and back.

    Returns:
        A handle with a method ``remove`` that undoes this. As a context manager, the handle undoes
        it on exit.

    Raises:
        ValueError: if an argument is not a supported step function or integer dtype, or already
            has a straight-through estimate.

    Example:
        >>> import torch
        >>> from captum_transformer import ConservativeLRP, extend
        >>> def model(x):
        ...     x = (x * 8).round() / 8
        ...     return torch.nn.functional.scaled_dot_product_attention(x, x, x).mean(1)
        >>> x = torch.rand(1, 4, 8)
        >>> with extend.straight_through(torch.round):
        ...     relevance = ConservativeLRP(model).attribute(x, target=3)
        >>> bool(relevance.any())
        True
    """
    keys = [one if isinstance(one, torch.dtype) else bare_name(one) for one in functions]
    for key, given in zip(keys, functions, strict=True):
        if not _rounds(key):
            raise ValueError(
                "What counts as the signal that it rounds is one of torch.round, floor, ceil, "
                f"trunc, fix and sign, or a type of integers such as torch.int8; got {given!r}."
            )
        if key in STRAIGHT_THROUGH:
            raise ValueError(f"`{key}` counts as what it rounds already.")
    STRAIGHT_THROUGH.update(keys)
    return DescribedFunction(
        ", ".join(map(str, keys)), lambda: STRAIGHT_THROUGH.difference_update(keys)
    )


def _rounds(key: Any) -> bool:
    """Whether a key is the name of a step function of one signal, or an integer dtype."""
    if isinstance(key, torch.dtype):
        return not (key.is_floating_point or key.is_complex or key is torch.bool)
    entry = ENTRIES.get(key)
    return entry is not None and rounds(entry)


def _is_custom(function: Any) -> TypeGuard[type[Function]]:
    return isinstance(function, type) and issubclass(function, Function)


def _is_of_torch(kernel: OpOverload | OpOverloadPacket) -> bool:
    return str(kernel).startswith("aten.")


def _refuse_known(function: Any) -> str:
    name = function.__name__ if _is_custom(function) else str(function)
    if function in APPLIED or function in KERNELS or function in LAYERS:
        raise ValueError(f"`{name}` is described already. Remove that description first.")
    return name
