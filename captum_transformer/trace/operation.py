"""What a tape holds: operations, their operands, and the values that go from one to the next."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.trace.axis import Axis
from captum_transformer.trace.functions import Kind


class Value:
    """One version of a tensor that the inputs reach.

    Attributes:
        index: its place in the order of values.
        holder: the tensor, as long as it lives.
        version: how often the tensor had been written into when it came to hold this value.
        operation: what produced it; None for an input.
        samples: where the samples of the batch lie in it.
        features: where the features of its tokens lie in it, whole or split (into heads, say).
        ancestors: bit set of the values that it was made from.
        attention: bit set of the attention calls in its history.
        mixtures: bit set of the operations in its history that tie tokens, and are no attention.
        shape, stride, dtype, device: of the tensor.
        holds_ids: whether it holds token ids, which have no gradient.
        learned: whether no input reaches it: attention among learned queries, and what follows.
        keys: where the axis that a softmax ran over lies in it, if one did.
        origin: the value whose entries these are, merely cast or rearranged (itself otherwise).
    """

    __slots__ = (
        "ancestors",
        "attention",
        "device",
        "dtype",
        "features",
        "holder",
        "holds_ids",
        "index",
        "keys",
        "learned",
        "mixtures",
        "operation",
        "origin",
        "samples",
        "shape",
        "stride",
        "version",
    )

    def __init__(self, index: int, tensor: Tensor) -> None:
        self.index = index
        self.holder = weakref.ref(tensor)
        self.version = tensor._version
        self.shape = tensor.shape
        self.stride = tensor.stride()
        self.dtype = tensor.dtype
        self.device = tensor.device
        self.holds_ids = not (self.dtype.is_floating_point or self.dtype.is_complex)
        self.learned = False
        self.operation: Operation | None = None
        self.samples: Axis | None = None
        self.features: tuple[Axis, ...] = ()
        self.keys: Axis | None = None
        self.ancestors = 0
        self.attention = 0
        self.mixtures = 0
        self.origin = self

    @property
    def weighs_tokens(self) -> bool:
        """Whether it holds softmax weights of tokens, and not of features."""
        return self.keys is not None and self.keys not in self.features

    def blank(self, dtype: torch.dtype) -> Tensor:
        """A tensor of the same layout for replays in which the entries don't matter."""
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=self.device)

    def descends_from(self, other: "Value") -> bool:
        """Whether it was made from ``other``."""
        return bool(self.ancestors >> other.index & 1)


class Operand:
    """A tensor argument of a recorded operation: what is needed to replay it.

    The data is held only if a rule may ask for it, and stays what it was when the operation ran,
    whatever is written into the tensor later.

    Args:
        tensor: the argument, held until it is known whether its data is kept.
        value: what it holds, if the inputs reach it.
    """

    __slots__ = ("data", "value")

    def __init__(self, tensor: Tensor, value: Value | None) -> None:
        self.data: Tensor | None = tensor
        self.value = value

    @property
    def tensor(self) -> Tensor:
        """The data, as it was when the operation ran."""
        if self.data is None:
            raise RuntimeError("the trace was told not to keep this operand")
        return self.data

    @property
    def size(self) -> torch.Size:
        """The shape of the tensor."""
        return self.tensor.shape if self.value is None else self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the tensor."""
        return self.tensor.dtype if self.value is None else self.value.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensor is."""
        return self.tensor.device if self.value is None else self.value.device


@dataclass(eq=False, slots=True)
class Operation:
    """One recorded operation; tensors stand as `Operand` in its ``args`` and ``kwargs``."""

    index: int
    name: str
    kind: Kind
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: list[Operand]
    outputs: list[Value | None] = field(default_factory=list)
    result: Operand | None = None
    edge: GradientEdge | None = None
    attention: Any = None
    _traced: list[tuple[Operand, Value]] | None = None

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """What was given for an argument, by position or by name."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[place] if len(self.args) > place else default

    def traced(self) -> list[tuple[Operand, Value]]:
        """The operands that the inputs reach, each with its value."""
        if self._traced is None:
            self._traced = [(o, o.value) for o in self.operands if o.value is not None]
        return self._traced

    def clear(self) -> None:
        """Lets go of everything that it refers to."""
        self.args, self.kwargs, self.operands, self.outputs = (), {}, [], []
        self.result = self.edge = self.attention = None
        self._traced = []

    def replay(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Runs the operation again on other tensors in the place of its traced operands."""
        replaced = {id(o): t for (o, _), t in zip(self.traced(), tensors, strict=True)}
        dtype = tensors[0].dtype

        args = _thaw(self.args, replaced, dtype)
        out = self.call(*args, **_thaw(self.kwargs, replaced, dtype))
        return list(out) if isinstance(out, (tuple, list)) else [out]


def _thaw(argument: Any, replaced: dict[int, Tensor], dtype: torch.dtype) -> Any:
    """The arguments with tensors in the place of operands, constants in the given precision."""
    if isinstance(argument, Operand):
        if id(argument) in replaced:
            return replaced[id(argument)]
        constant = argument.tensor
        return constant.to(dtype) if constant.is_floating_point() else constant
    if isinstance(argument, dict):
        return {key: _thaw(part, replaced, dtype) for key, part in argument.items()}
    if isinstance(argument, (list, tuple)):
        parts = [_thaw(part, replaced, dtype) for part in argument]
        return parts if isinstance(argument, list) else tuple(parts)
    return argument
