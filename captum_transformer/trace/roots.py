"""Where the inputs enter the autograd graph, and tensors that depend on them unseen."""

from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from captum_transformer.calling.refusals import is_sharded
from captum_transformer.errors import UnseenOperationError, UnsupportedOperationError


class Roots:
    """The nodes at which the inputs enter the autograd graph."""

    def __init__(self) -> None:
        self._roots: set[Any] = set()
        self._rootless: set[Any] = set()  # nodes that don't lead to any of them

    def add(self, tensor: Tensor) -> None:
        """Adds the node of a tensor that requires a gradient."""
        self._roots.add(get_gradient_edge(tensor).node)

    def clear(self) -> None:
        """Forgets all nodes."""
        self._roots.clear()
        self._rootless.clear()

    def require_none_behind(self, tensor: Tensor) -> None:
        """Checks that a tensor that holds no known value does not depend on the inputs.

        Raises:
            UnseenOperationError: if it does, through an operation that the trace did not see.
            UnsupportedOperationError: if it is sharded.
        """
        if is_sharded(tensor):
            raise UnsupportedOperationError(
                "The model computes with sharded tensors (DTensors), as under tensor parallelism, "
                "whose parts are in other processes. Explain a copy with whole weights."
            )
        stack, seen = [tensor.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen or node in self._rootless:
                continue
            if node in self._roots:
                raise UnseenOperationError(
                    f"A tensor of shape {tuple(tensor.shape)} depends on the inputs through an "
                    "operation that the trace can't see, or that torch can't differentiate "
                    "(autograd "
                    f"calls it {tensor.grad_fn.name() if tensor.grad_fn else 'unknown'}). Custom "
                    "`autograd.Function`s, scripted code, `torch.vmap`, flash-attn and what "
                    "`torch.autograd.grad` computes are invisible to torch functions, and steps "
                    "such as `torch.heaviside` have no derivative: switch to a plain PyTorch "
                    "implementation (`attn_implementation='sdpa'` in Transformers, a module of "
                    "torch.nn for an activation), checkpoint activations by "
                    "`torch.utils.checkpoint`, remove other libraries' hooks that change "
                    "gradients, and of a wrapper such as DistributedDataParallel explain the "
                    "`module`. Or say what the Function is, by "
                    "`captum_transformer.extend.describe_function`, or `describe_linear` for a "
                    "layer with quantised weights."
                )
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
        self._rootless |= seen
