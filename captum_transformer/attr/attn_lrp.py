"""Achtibat et al. (ICML 2024): AttnLRP."""

from collections.abc import Callable
from typing import Any

from captum_transformer.attr.gradient_times_input import GradientTimesInput
from captum_transformer.calling.arguments import Arguments
from captum_transformer.rules.gradient import attn_lrp
from captum_transformer.trace.mode import ForwardRules


class AttnLRP(GradientTimesInput):
    r"""Layer-wise relevance propagation with rules for attention, as a modified gradient.

    The relevance of the inputs is :math:`R_i = x_i \cdot \partial f_c / \partial x_i`, where the
    gradient is changed at

    - products of several signals, :math:`Q K^\top`, :math:`A V` and the gates of an MLP: each
      factor gets the same share (the uniform rule); the softmax keeps its own gradient, which is
      its first-order Taylor expansion with a bias term;
    - activations: the slope is :math:`f(x) / x` (the identity rule), also of those written in
      Python as ``x * gate(x)``, where the gate is that slope, and no stabiliser is needed (the
      results are the authors' to 1e-9). Numbers that are added are a part of it, as in
      ``log(1 + x)`` or ``(1 + tanh(x / 2)) / 2``; a tensor is a bias. One that is not zero at
      zero, as a sigmoid that gates another signal, leaves all its relevance to an x that may all
      but vanish, and so magnifies it;
    - norms, fused or written in Python, over features, channels, windows or samples: what divides
      the signal is a constant (the subtracted mean is not). So is any divisor of a signal, but for
      the sum of softmax weights, some of them masked, which keeps its gradient as a softmax
      does, and for two that are refused: an activation of another signal, and a sum of
      exponentials.

    Linear maps, residual connections, rotary embeddings, maxima and lengths keep their gradient,
    which is LRP-0. Unlike in ``ConservativeLRP`` queries and keys take part. Biases, also those of
    the softmax's expansion, absorb relevance: the sum is not the score, and there is no convergence
    delta. It costs one forward and one backward pass.

    The results are those of the authors' package ``lxt`` for language models. For vision
    Transformers the paper adds LRP-gamma in linear layers and convolutions, which is not done here.

    Args:
        forward_func: the model or any callable that runs one.

    Reference:
        `AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers
        <https://arxiv.org/abs/2402.05602>`_.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> AttnLRP(model).attribute(images, target=3).shape
        torch.Size([2, 3, 32, 32])
        >>> AttnLRP(model).attribute_tokens(images, target=3).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        gamma: float | None = None,
        conv_gamma: float | None = None,
    ) -> None:
        super().__init__(forward_func)
        self.gamma = gamma
        self.conv_gamma = conv_gamma
        self._rules = attn_lrp(gamma, conv_gamma)

    def _forward_rules(self, arguments: Arguments[Any]) -> ForwardRules:  # noqa: ARG002
        return self._rules
