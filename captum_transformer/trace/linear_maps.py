"""Functions that are described as linear layers, with weights in any format."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import InvalidRuleError
from captum_transformer.trace.entries import Entry

Read = Callable[..., Any]
# The relative tolerance for a token's output, since kernels round activations to 8 bits.
_TOLERANCE = 0.1


class KnownWeights(Tensor):
    """The weights of a linear layer that is run by another function than ``F.linear``.

    ``F.linear`` with these weights calls that function. Rules read the numbers when they need them.

    Args:
        read: returns the numbers as a plain tensor ``(outputs, inputs)``.
        run: returns the output of the layer for a signal and a bias.
        shape: the shape of the numbers.
        like: a tensor with the dtype and device that the layer works in.
    """

    read: Callable[[], Tensor]
    run: Callable[[Tensor, Tensor | None], Tensor]

    def __new__(  # noqa: D102 - the arguments are documented in the class
        cls,
        read: Callable[[], Tensor],
        run: Callable[[Tensor, Tensor | None], Tensor],
        shape: tuple[int, ...],
        like: Tensor,
    ) -> "KnownWeights":
        new: KnownWeights = Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, shape, dtype=like.dtype, device=like.device
        )
        new.read, new.run = read, run
        return new

    def dequantize(self) -> Tensor:
        """Returns the numbers with the dtype and device that the layer works in."""
        with torch.no_grad():
            return self.read().to(self.device, self.dtype)

    def detach(self) -> Tensor:
        """Returns the same weights, since they have no gradient."""
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and isinstance(args[1], cls):
            signal, weights, bias = args
            return weights.run(signal, bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} computes with weights that are to be read first")


class LinearMap:
    """A function that multiplies a signal with weights in a format of its own.

    Args:
        name: the name of the function, for error messages.
        function: the function.
        entry: the names of its arguments; ``input`` is the signal.
        weight: returns the weights ``(outputs, inputs)`` of a call, given its arguments with None
            for the signal; None to compute them by passing the identity matrix through the
            function.
        bias: returns the bias of a call, given its arguments; None if the bias is an argument
            ``bias``, or if there is none.
        derived: whether the derivative by autograd is used. It is not for kernels, whose result may
            require a gradient although they have no derivative.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        entry: Entry,
        weight: Read | None,
        bias: Read | None,
        *,
        derived: bool,
    ) -> None:
        self._name, self._function, self._entry = name, function, entry
        self._weight, self._bias = weight, bias
        self._derived, self._checked = derived, False

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Converts the arguments of a call to arguments of ``F.linear`` that run the function."""
        given = dict(zip(self._entry.parameters, args))  # noqa: B905 - some have defaults
        given |= {self._entry.canonical(name): argument for name, argument in kwargs.items()}
        signal: Tensor = given["input"]
        bias = given.get("bias") if self._bias is None else self._bias(*args, **kwargs)
        run = partial(self._run, *self._with(args, kwargs, input=None, bias=None))
        # Run a row of zeros to get the number of outputs without reading the weights.
        row = signal.detach().new_zeros((*(1,) * (signal.ndim - 1), signal.shape[-1]))
        with torch.no_grad():
            outputs = run(row, None).shape[-1]
        args, kwargs = self._with(args, kwargs, input=None)
        read: Callable[[], Any] = (
            partial(_of_identity, run, row)
            if self._weight is None
            else partial(self._weight, *args, **kwargs)
        )
        weights = KnownWeights(read, run, (outputs, signal.shape[-1]), signal)
        if not self._checked and signal.numel():
            with torch.no_grad():
                self._check(signal, weights, bias)
            self._checked = True
        return signal, weights, bias

    def _run(
        self, args: Sequence[Any], kwargs: dict[str, Any], signal: Tensor, bias: Tensor | None
    ) -> Tensor:
        args, kwargs = self._with(args, kwargs, input=signal, bias=bias)
        result: Tensor = self._function(*args, **kwargs)
        return result if self._derived else result.detach()

    def _with(
        self, args: Sequence[Any], kwargs: dict[str, Any], **new: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of a call with some of them replaced."""
        names = chain(self._entry.parameters, repeat(""))
        named = ((name, self._entry.canonical(name), value) for name, value in kwargs.items())
        return (
            tuple(new.get(name, value) for name, value in zip(names, args, strict=False)),
            {name: new.get(canonical, value) for name, canonical, value in named},
        )

    def _check(self, signal: Tensor, weights: KnownWeights, bias: Tensor | None) -> None:
        """Raises an error if the output for the token of largest norm is far from the layer's."""
        tokens = signal.reshape(-1, signal.shape[-1])
        token = tokens[tokens.norm(dim=-1).argmax()].view(*(1,) * (signal.ndim - 1), -1)
        given = weights.run(token, bias)
        expected = F.linear(token, weights.dequantize(), None if bias is None else bias.to(token))
        difference, size = (given - expected).norm(), expected.norm()
        if difference > _TOLERANCE * size:
            raise InvalidRuleError(
                f"`{self._name}` is described as a linear layer, but for a token its output is "
                f"{difference / size:.0%} off the output of a layer with its weights. Describe it "
                f"correctly, or pass the function that reads its weights."
            )


def _of_identity(run: Callable[[Tensor, Tensor | None], Tensor], row: Tensor) -> Tensor:
    """Computes the weights from outputs for the identity matrix and for a row of zeros."""
    identity = torch.eye(row.shape[-1], dtype=row.dtype, device=row.device)
    image = run(identity.view(*row.shape[:-2], *identity.shape) if row.ndim > 1 else identity, None)
    return (image - run(row, None)).flatten(0, -2).T


# Keyed by torch functions, kernels, and the replacements of custom functions' `apply`.
LAYERS: dict[Any, LinearMap] = {}
