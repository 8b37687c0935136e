"""The rules of AttnLRP, and the same written out with plain autograd."""

import torch
from torch import Tensor

from captum_transformer.calling.arguments import Arguments
from captum_transformer.rules.gradient import ATTN_LRP
from captum_transformer.trace import traced_forward


def relevance(model, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Input times the rules' gradient of the sum of a sample's outputs."""
    with traced_forward(model, Arguments(inputs), rules=ATTN_LRP) as forward:
        gradients = forward.gradients(forward.output, forward.edges)
        zeros = [torch.zeros_like(x) for x in inputs]
        return tuple(
            x * (zero if g is None else g)
            for x, zero, g in zip(inputs, zeros, gradients, strict=True)
        )


def by_autograd(model, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(model(*leaves).sum(), leaves)
    return tuple(x * g for x, g in zip(inputs, gradients, strict=True))


def half(x: Tensor) -> Tensor:
    """The same value with half the gradient."""
    return x / 2 + (x / 2).detach()


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weigh(output: Tensor) -> Tensor:
    """Makes each entry of an output count differently."""
    return output * doubles(*output.shape, seed=8).to(output.dtype)
