"""Attention with explicit matrices, computed from the weights of modules."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


class Explicit:
    """Self-attention that keeps its probabilities, so that autograd gives their gradient."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, attention: nn.MultiheadAttention, x: Tensor, bias: Tensor) -> Tensor:
        """Runs a ``nn.MultiheadAttention`` on ``(samples, tokens, features)``."""
        projected = x @ attention.in_proj_weight.T + attention.in_proj_bias
        query, key, value = (split_heads(t, attention.num_heads) for t in projected.chunk(3, -1))
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5 + bias
        probabilities = scores.exp() / scores.exp().sum(-1, keepdim=True)
        self.maps.append(probabilities)
        joined = (probabilities @ value).transpose(1, 2).flatten(2)
        return joined @ attention.out_proj.weight.T + attention.out_proj.bias

    def generic_relevance(self, scores: Tensor) -> Tensor:
        """ICCV 2021: ``R <- R + E[(dA * A)+] R``, and at the end ``R - I``."""
        gradients = torch.autograd.grad(scores.sum(), self.maps, retain_graph=True)
        product = torch.eye(self.maps[0].shape[-1], dtype=torch.float64)
        for probabilities, gradient in zip(self.maps, gradients, strict=True):
            product = product + (gradient * probabilities).clamp(min=0).mean(1) @ product
        return product.detach() - torch.eye(product.shape[-1])

    def rollout(self) -> Tensor:
        """The product of the maps with their skips, rows normalised.

        Half of each layer bypasses attention. What bypasses all layers is left out.
        """
        eye = product = torch.eye(self.maps[0].shape[-1], dtype=torch.float64)
        for probabilities in self.maps:
            layer = eye + probabilities.mean(1)
            product = layer / layer.sum(-1, keepdim=True) @ product
        return product.detach() - eye / 2 ** len(self.maps)


def explicit_encoder_layer(
    layer: nn.TransformerEncoderLayer, x: Tensor, explicit: Explicit, bias: Tensor
) -> Tensor:
    def feed_forward(tokens: Tensor) -> Tensor:
        return layer.linear2(F.relu(layer.linear1(tokens)))

    if layer.norm_first:
        x = x + explicit(layer.self_attn, layer.norm1(x), bias)
        return x + feed_forward(layer.norm2(x))
    x = layer.norm1(x + explicit(layer.self_attn, x, bias))
    return layer.norm2(x + feed_forward(x))
