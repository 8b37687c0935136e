"""Functions that are linear layers by their description, whatever form their weights are in."""

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
# How far from the described layer a token's output may be: kernels round activations to 8 bits.
_TOLERANCE = 0.1


class KnownWeights(Tensor):
    """The weights of a linear layer that something else than ``F.linear`` has run.

    ``F.linear`` returns what that gave; rules read the numbers when they need them.

    Args:
        read: gives the numbers as a plain tensor ``(outputs, inputs)``.
        shape: its shape.
        like: a tensor of the precision and on the device that the layer works in.
        result: what the layer gave.
    """

    read: Callable[[], Tensor]
    result: Tensor | None

    def __new__(  # noqa: D102 - it takes what the class says
        cls,
        read: Callable[[], Tensor],
        shape: tuple[int, ...],
        like: Tensor,
        result: Tensor | None = None,
    ) -> "KnownWeights":
        new: KnownWeights = Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, shape, dtype=like.dtype, device=like.device
        )
        new.read, new.result = read, result
        return new

    def dequantize(self) -> Tensor:
        """The numbers in the precision that the layer works in."""
        with torch.no_grad():
            return self.read().to(self.device, self.dtype)

    def detach(self) -> Tensor:
        """The same weights without what the layer gave, which is not to be held with them."""
        return KnownWeights(self.read, tuple(self.shape), self)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and isinstance(args[1], cls) and args[1].result is not None:
            return args[1].result
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} computes with weights that are to be read first")


class LinearMap:
    """What a function is that multiplies a signal with weights, in some form that it knows.

    Args:
        name: the function's, for messages.
        run: the function.
        entry: how its arguments are called; ``input`` is the signal.
        weight: gives a call's weights, ``(outputs, inputs)``, by its arguments without the signal;
            None to read them off what the function makes of the identity matrix.
        bias: gives a call's bias; None if an argument ``bias`` is it, or there is none.
        derived: whether autograd has its derivative. Of kernels it may say so when there is none.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        entry: Entry,
        weight: Read | None,
        bias: Read | None,
        *,
        derived: bool,
    ) -> None:
        self._name, self._run, self._entry = name, run, entry
        self._weight, self._bias = weight, bias
        self._derived, self._checked = derived, False

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Runs the function; the arguments of ``F.linear`` that give what it gave."""
        result: Tensor = self._run(*args, **kwargs)
        result = result if self._derived else result.detach()
        given = dict(zip(self._entry.parameters, args))  # noqa: B905 - some have defaults
        given |= {self._entry.canonical(name): argument for name, argument in kwargs.items()}
        signal: Tensor = given["input"]
        bias = given.get("bias") if self._bias is None else self._bias(*args, **kwargs)
        args, kwargs = self._with(args, kwargs, input=None)
        read: Callable[[], Any]
        if self._weight is None:
            ones = partial(torch.eye, signal.shape[-1], dtype=signal.dtype, device=signal.device)
            read = partial(self._of_identity, args, kwargs, ones, signal.ndim)
        else:
            read = partial(self._weight, *args, **kwargs)
        shape = (result.shape[-1], signal.shape[-1])
        weights = KnownWeights(read, shape, signal, result)
        if not self._checked:
            self._check(signal.detach(), weights.dequantize(), bias, result.detach())
        return signal, weights, bias

    def _of_identity(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ones: Callable[[], Tensor],
        ndim: int,
    ) -> Tensor:
        """The weights, which a linear map shows of the identity matrix, whatever it adds."""
        identity = ones()
        rows = identity.view(*(1,) * (ndim - 2), *identity.shape)
        images = []
        for signal in (rows, torch.zeros_like(rows[..., :1, :])):
            args, kwargs = self._with(args, kwargs, input=signal, bias=None)
            images.append(self._run(*args, **kwargs))
        image, of_nothing = images
        weights: Tensor = (image - of_nothing).flatten(0, -2).T
        return weights

    def _check(self, signal: Tensor, weight: Tensor, bias: Tensor | None, result: Tensor) -> None:
        """Raises if the function is no such layer, by what it made of the largest token."""
        tokens = signal.flatten(0, -2)
        largest = tokens.norm(dim=-1).argmax()
        bias = None if bias is None else bias.detach().to(weight.dtype)
        expected = F.linear(tokens[largest].to(weight.dtype), weight, bias)
        difference = (result.flatten(0, -2)[largest] - expected).norm()
        if difference > _TOLERANCE * expected.norm():
            raise InvalidRuleError(
                f"`{self._name}` is described as a linear layer, but of a token it makes something "
                f"that is {difference / expected.norm():.0%} off what the layer with its weights "
                "makes of it. Describe it as what it is, or give what reads its weights."
            )
        self._checked = True

    def _with(
        self, args: Sequence[Any], kwargs: dict[str, Any], **new: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's arguments, some of them others."""
        names = chain(self._entry.parameters, repeat(""))
        named = ((name, self._entry.canonical(name), value) for name, value in kwargs.items())
        return (
            tuple(new.get(name, value) for name, value in zip(names, args, strict=False)),
            {name: new.get(canonical, value) for name, canonical, value in named},
        )


# Torch functions, kernels, and what takes the place of a custom function's `apply`.
LAYERS: dict[Any, LinearMap] = {}
