"""A call of a method as one graph of ATen operations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from captum_transformer.calling.reading import read_by
from captum_transformer.captured.arguments import Role
from captum_transformer.captured.code import as_function
from captum_transformer.captured.ordered import in_any_order
from captum_transformer.captured.recording import HostReads, Recording
from captum_transformer.captured.shared import aliased, share
from captum_transformer.captured.simplified import forms_of, simplify
from captum_transformer.errors import (
    CaptureError,
    ExplanationError,
    InvalidInputError,
    InvalidTargetError,
)


class Recorded:
    """A function of tensors, recorded once.

    Attributes:
        graph: a function of the given tensors, followed by those of `state`. It returns a list: the
            results, and last, if there are conditions, whether each of them holds.
        state: the other tensors that the function reads, by their names in the graph.
        written: which tensors of the state it writes into; their numbers are restored at its end.
        checks: what each of the conditions is about.
        reads: which of them are about what the model reads; the others are the library's own.
        structure: how the results are nested.
    """

    def __init__(
        self, function: Callable[..., Any], tensors: Sequence[Tensor], roles: Sequence[Role]
    ) -> None:
        recording = Recording(roles)

        def run(*tensors: Tensor) -> list[Tensor]:
            with _as_if_uncaptured(), recording, HostReads(recording), read_by(recording):
                result = function(*tensors)
            results, self.structure = pytree.tree_flatten(result)
            found = [condition.holds for condition in recording.conditions]
            return results + ([torch.stack(found)] if found else [])

        # Without a mode of its own for each tensor, of which the graph notes down what it is like.
        context = tracing(TracingContext(_Forms(allow_non_fake_inputs=True)))
        with torch.inference_mode(mode=False), context, _recorded_by_torch():
            graph_module = make_fx(run)(*tensors)
        self.checks = [condition.what for condition in recording.conditions]
        self.reads = [condition.of_model for condition in recording.conditions]
        graph = graph_module.graph
        graph.eliminate_dead_code(_changes_something)
        for node in graph.nodes:
            if node in recording.random:
                raise CaptureError(
                    f"The model draws random numbers, at {recording.random[node]}: a captured call "
                    "can't restore the generators' state. Explain the model uncaptured."
                )
        literals = recording.literals
        self.state = _lifted(graph_module, literals)
        self.written = _written(graph, list(self.state))
        everything = [*tensors, *self.state.values()]
        simplify(graph_module, everything)
        share(graph)
        graph.lint()
        self.graph = GraphModule(graph_module, graph, "CapturedGraph")
        self.run = as_function(self.graph, forms_of(self.graph, everything))

    @property
    def nodes(self) -> int:
        """The number of operations of the graph."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)


class _Forms(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Makes the tensors without data that the graph has of its results.

    PyTorch would look up what each is like by its operation, though that is what it is given.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        further = dict(kwargs or {})
        dtype, device = further.pop("dtype", None), further.pop("device", None)
        asked = func is torch.ops.aten.empty_strided.default and dtype is not None
        if not asked or device is None or any(further.values()):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return FakeTensor(self, torch.empty_strided(*args, dtype=dtype, device="meta"), device)


@contextmanager
def _as_if_uncaptured() -> Iterator[None]:
    """Lets a model that asks whether torch traces it take the same way as in other calls."""
    fx: Any = torch.fx._symbolic_trace  # noqa: SLF001
    own = vars(fx).get("_is_fx_tracing_tls")  # of this thread, in newer versions of PyTorch
    owner, name = (fx, "_is_fx_tracing_flag") if own is None else (own, "flag")
    earlier = getattr(owner, name, False)
    setattr(owner, name, False)
    try:
        yield
    finally:
        setattr(owner, name, earlier)


@contextmanager
def _recorded_by_torch() -> Iterator[None]:
    """Lets compiled functions, which run as they were written, become part of a graph.

    An error of torch is one of recording: the call itself has run before.
    """
    try:
        with torch._dynamo.config.patch(error_on_nested_fx_trace=False):  # noqa: SLF001
            yield
    except (ExplanationError, InvalidInputError, InvalidTargetError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise CaptureError(
            f"PyTorch can't record this call as a graph ({type(error).__name__}: {reason}). "
            "Explain the model uncaptured."
        ) from error


def _changes_something(node: Node) -> bool:
    """Returns whether a node has to stay even if its result is not used."""
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _lifted(module: GraphModule, literals: Sequence[Tensor]) -> dict[str, Tensor]:
    """Turns the tensors that the graph holds into its inputs, except those of Python numbers."""
    graph = module.graph
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    state: dict[str, Tensor] = {}
    by_tensor: dict[int, Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(module, node.target)
        if any(tensor is literal for literal in literals):
            continue
        if id(tensor) not in by_tensor:
            with graph.inserting_after(last):
                last = by_tensor[id(tensor)] = graph.placeholder(f"state_{len(state)}")
            state[last.name] = tensor
        node.replace_all_uses_with(by_tensor[id(tensor)])
        graph.erase_node(node)
    return state


def _written(graph: Graph, state: list[str]) -> list[int]:
    """Returns which tensors of the state an operation writes into, maybe through a view."""
    found: set[int] = set()
    for node in graph.nodes:
        for written in aliased(node, written=True):
            source = written
            while views := aliased(source, written=False):
                (source, *_) = views
            if source.op == "placeholder" and source.name in state:
                found.add(state.index(source.name))
    return sorted(found)


def as_module(
    recorded: Recorded, state: Mapping[str, tuple[str, Tensor]], tensors: Sequence[Tensor]
) -> GraphModule:
    """Returns the graph with its state as buffers, for compilers, which may order memory anew.

    Args:
        recorded: the graph.
        state: the dotted name and the tensor for each name of a tensor in the graph.
        tensors: examples of the other tensors.
    """
    held = [tensor for _, tensor in state.values()]
    source = in_any_order(recorded.graph, [*tensors, *held])
    placeholders = source.graph.find_nodes(op="placeholder")
    names = dict(zip(placeholders[len(tensors) :], state.values(), strict=True))
    root = torch.nn.Module()
    graph = Graph()
    copied: dict[Node, Node] = {}
    for node in source.graph.nodes:
        if node in names:
            copied[node] = graph.get_attr(_put(root, *names[node]))
            continue
        if node.op == "get_attr":
            setattr(root, node.target, getattr(source, node.target))
        copied[node] = graph.node_copy(node, copied.__getitem__)
    return GraphModule(root, graph, "CapturedGraph")


def _put(root: torch.nn.Module, name: str, tensor: Tensor) -> str:
    """Adds a tensor to a module; returns its name, with a number if the given one is in use."""
    *path, last = (part or "_" for part in name.split("."))
    for place, part in enumerate(path):
        held = root._modules.get(part)  # noqa: SLF001 - not the attributes that each module has
        if held is None:
            path[place] = part = _unused(root, part)
            held = torch.nn.Module()
            root.add_module(part, held)
        root = held
    last = _unused(root, last)
    # Not as parameters, which old versions of PyTorch load from a file with `requires_grad=True`.
    root.register_buffer(last, tensor.detach())
    return ".".join([*path, last])


def _unused(module: torch.nn.Module, name: str) -> str:
    numbered = (f"{name}_{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if not hasattr(module, one))
