"""The graph of one call, with all that decides whether it may answer another call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from captum_transformer.calling.isolation import modules_of
from captum_transformer.captured.arguments import Given
from captum_transformer.captured.contents import is_resolved
from captum_transformer.captured.executed import Executed, uncollected
from captum_transformer.captured.graph import Recorded
from captum_transformer.captured.guards import Guard
from captum_transformer.captured.regions import Compiler, compiled_in_parts
from captum_transformer.captured.settings import as_recorded, modes
from captum_transformer.errors import CaptureError

_PLAIN = (Tensor, nn.Parameter)


class Guarded:
    """The graph of one call, with what is needed to run it.

    Attributes:
        example: the call, without its tensors' numbers.
        sizes: the sizes of what a target indexes, by the number of its indices.
    """

    def __init__(
        self,
        recorded: Recorded,
        guard: Guard,
        given: Given,
        sizes: Sequence[Any],
    ) -> None:
        self.recorded = recorded
        self.example = given
        self.guard = guard
        self._run: Callable[..., Any] = recorded.run
        self.sizes = {len(size): tuple(size) for size in sizes}

    def answer(self, given: Given) -> list[Tensor] | None:
        """Returns what the graph returns, or None if the target does not fit the output."""
        for rows in given.numbers:
            size = self.sizes.get(len(rows[0]))
            if size is None or not all(_is_within(row, size) for row in rows):
                return None
        try:
            return self(given)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError):  # of a target that is a tensor
            return None

    def __call__(self, given: Given) -> list[Tensor]:
        """Returns what the graph returns; what it writes is put back if it fails."""
        with as_recorded(self.example.devices):
            state = self.guard.state()
            written = [(state[number], state[number].clone()) for number in self.recorded.written]
            try:
                found: list[Tensor] = self._run(*given.tensors, *state)
            except Exception:
                for tensor, numbers in written:
                    tensor.copy_(numbers)
                raise
        return found

    def compile(self, compiler: Compiler) -> None:
        """Compiles the graph, so that later calls run the compiled one."""
        self.require_apart()
        with torch.inference_mode(mode=False), torch.no_grad():
            tensors = [*self.example.example(), *self.guard.state()]
            compiled = compiled_in_parts(self.recorded.graph, tensors, compiler)

        def run(*tensors: Tensor) -> list[Tensor]:
            # With CUDA graphs, the next step writes over the results of this one.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return [tensor.clone() for tensor in compiled(*tensors)]

        self._run = run

    def require_apart(self) -> None:
        """Raises an error if tensors aren't what is in their memory, which only eager code sees.

        This is so if a write into one changes another, or if one is negated where it is read.
        """
        state, names = self.guard.state(), self.guard.state_names()
        for name, tensor in zip(names, state, strict=True):
            if not is_resolved(tensor):
                raise CaptureError(
                    f"{name} is conjugated or negated where it is read: the captured call can't be "
                    "compiled or saved. Replace it with `tensor.resolve_conj().resolve_neg()`."
                )
        for number in self.recorded.written:
            for other, tensor in enumerate(state):
                if other != number and _share_memory(tensor, state[number]):
                    raise CaptureError(
                        f"The model writes into {names[number]}, which shares memory with "
                        f"{names[other]}: the captured call can't be compiled or saved. Give each "
                        "its own memory (`tensor.clone()`)."
                    )

    def state(self) -> dict[str, tuple[str, Tensor]]:
        """Returns the tensors that the graph reads, with their names in the model."""
        state = zip(self.recorded.state, self.guard.state_names(), self.guard.state(), strict=True)
        return {name: (dotted, tensor) for name, dotted, tensor in state}

    def holds(self, found: Sequence[Tensor]) -> bool:
        """Returns whether the library would compute in the same way for these numbers."""
        return not self.recorded.checks or bool(found[-1].all())

    def other_branch(self, found: Sequence[Tensor]) -> str | None:
        """Describes a value that the model would read differently, or returns None."""
        if not any(self.recorded.reads):
            return None
        recorded, every = self.recorded, found[-1].tolist()
        for what, reads, holds in zip(recorded.checks, recorded.reads, every, strict=True):
            if reads and not holds:
                return f"the model reads {what}"
        return None

    def restored(self, found: Sequence[Tensor]) -> Any:
        """Returns the results in the form in which the method returns them."""
        count = len(found) - bool(self.recorded.checks)
        return pytree.tree_unflatten(list(found[:count]), self.recorded.structure)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    # Tensors of other kinds have no memory of their own, and are not written into.
    plain = all(t.layout is torch.strided and type(t) in _PLAIN for t in (one, other))
    return plain and one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _is_within(indices: Sequence[int], size: Sequence[int]) -> bool:
    return all(-length <= i < length for i, length in zip(indices, size, strict=True))


@uncollected()
def captured(method: Any, given: Given, call: Callable[..., Any]) -> tuple[Guarded, Any]:
    """Captures a call as a graph; returns it with what the method returns for the call."""
    if active := sorted({type(mode).__name__ for mode in modes()}):
        raise CaptureError(
            f"Torch's functions pass through {', '.join(active)}, a mode that may change what they "
            "do: a captured call would keep it. Capture the call outside of this mode."
        )
    executed, sizes = Executed(), list[Any]()
    with executed.noted():
        expected = given.call(call, given.tensors, sizes)
    if executed.random:
        raise CaptureError(
            f"The model draws random numbers in Python, at {executed.random[0]}: a "
            "captured call would repeat those that were drawn when it was captured."
        )
    modules = list(modules_of(method.forward_func))
    known = {id(module) for _, module in modules}
    modules += [
        (type(module).__name__, module)
        for key, module in executed.modules.items()
        if key not in known
    ]
    guard = Guard(method, modules, executed, given.devices, given.fixed)
    tensors = given.own_tensors()
    recorded = Recorded(lambda *tensors: given.call(call, tensors, []), tensors, given.roles)
    for tensor in recorded.state.values():
        if not guard.places(tensor):
            raise CaptureError(
                f"The model uses a tensor of shape {tuple(tensor.shape)} that is found neither "
                "among its parameters, buffers and attributes nor in what its functions hold: a "
                "captured call would not see it replaced. Make it an attribute of a module, or a "
                "buffer."
            )
    if (generator := guard.drawn()) is not None:
        raise CaptureError(
            f"The model draws random numbers from {generator}: a captured call would repeat those "
            "that were drawn when it was captured."
        )
    guard.watch(recorded.state)
    graph = Guarded(recorded, guard, given, sizes)
    if (why := guard.changed()) is not None:
        raise CaptureError(f"The model changes while it is explained: {why}.")
    found = graph(given)
    given.forget()
    _require_same(graph.restored(found), expected)
    return graph, expected


def _require_same(found: Any, expected: Any) -> None:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    for one, other in pairs:
        alike = (one == other) | (one.isnan() & other.isnan())
        if one.shape != other.shape or one.dtype != other.dtype or not bool(alike.all()):
            raise CaptureError(
                "The captured call and the method give different results for the same inputs: "
                "the model isn't deterministic, or computes in a way that can't be captured. "
                "Explain it uncaptured."
            )
