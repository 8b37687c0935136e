"""Achtibat et al. (ICML 2024): AttnLRP."""

from collections.abc import Callable
from typing import Any

from captum_transformer.attr.gradient_times_input import GradientTimesInput
from captum_transformer.attr.positional_method import Positions
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.rules.gradient import attn_lrp
from captum_transformer.trace.recorder import ForwardRules


class AttnLRP(GradientTimesInput):
    r"""Layer-wise relevance propagation with rules for attention, as a modified gradient.

    The relevance of the inputs is :math:`R_i = x_i \cdot \partial f_c / \partial x_i`, where the
    gradient is changed at

    - products of several signals, :math:`Q K^\top`, :math:`A V` and the gates of an MLP: each
      factor gets the same share (the uniform rule); the softmax keeps its own gradient, which is
      its first-order Taylor expansion with a bias term;
    - activations: the slope is :math:`f(x) / x` (the identity rule), also if they are written in
      Python as ``x * gate(x)``, where the gate is that slope, and no stabiliser is needed (the
      results equal the authors' to 1e-9). Added numbers are a part of the activation, as in
      ``log(1 + x)`` or ``(1 + tanh(x / 2)) / 2``; an added tensor is a bias. An activation that is
      not zero at zero, such as a sigmoid that gates another signal, passes all its relevance to an
      x that may be close to zero, and so magnifies it;
    - norms, fused or written in Python, over features, channels, windows or samples: the divisor
      is a constant (the subtracted mean is not). So is any other divisor of a signal, except for
      the sum of partly masked softmax weights, which keeps its gradient like a softmax,
      and for two that are refused: an activation of another signal, and a sum of exponentials.

    Linear maps, residual connections, rotary embeddings, maxima and lengths keep their gradient,
    which is LRP-0; with ``gamma`` and ``conv_gamma`` linear maps have LRP-gamma. Unlike in
    ``ConservativeLRP``, relevance goes through queries and keys. Biases, also those of the
    softmax's expansion, absorb relevance: the sum is not the score, and there is no convergence
    delta. It costs one forward and one backward pass.

    **LRP-gamma.** Signs alternate between neighbouring pixels and features, and on pictures LRP-0
    is just as noisy. With :math:`z_j = \sum_i x_i W_{ji} + b_j`, relevance is distributed by

    .. math:: R_i = \sum_j \frac{t_{ij} + \gamma \, t_{ij}^{s_j}}
        {\sum_k (t_{kj} + \gamma \, t_{kj}^{s_j}) + b_j + \gamma \, b_j^{s_j}} R_j,
        \qquad t_{ij} = x_i W_{ji},

    where :math:`t^{s_j}` is :math:`t` if it has the sign of :math:`z_j`, and zero if not: terms
    with the sign of the output count :math:`1 + \gamma` times. The bias gets its part, and an
    output of zero has zero relevance. This applies to convolutions and linear layers with constant
    weights, in any notation of a matrix product, except for the products that compute attention's
    scores; if weights depend on the inputs, each factor has its share. Without biases, the sum is
    preserved. It costs two more products of the same size for each layer: for a ViT-B/16 2.6 times
    a forward and a backward pass, and with ``conv_gamma`` alone as much as without.

    For pictures ``gamma=0.05, conv_gamma=100`` is best in five small models with mosaics of digits:
    72 to 83 % of the positive relevance of pixels is in the right cell, without gammas 51 to 63 %;
    by patch it is 74 to 84 %, without 71 to 82 %. Most of it comes from the convolution, and a
    gamma of one in linear layers is worse than none. By patch, ``positions="add"`` improves the
    maps more if there are many patches: 72 % on mosaics of MNIST, without it 70 %.

    The results agree with the authors' package ``lxt`` for language models. For vision
    Transformers, ``lxt`` has different rules: attention weights are constants, as in
    ``ConservativeLRP``, so that no relevance goes through queries and keys; gamma is used for the
    patch embedding, the MLPs and the head, but not for attention's projections. For a model of
    torchvision, this is

    .. code-block:: python

        def is_convolution(operation):
            return operation.kind is extend.Kind.CONV

        def is_of_mlp_or_head(operation):
            return ".mlp." in operation.module or operation.module.startswith("heads.")

        rules = extend.joined(
            extend.gamma(0.25, where=is_convolution),
            extend.gamma(0.05, where=is_of_mlp_or_head),
            extend.AH,
            extend.IDENTITY,
            extend.LN,
        )
        extend.GradientMethod(model, rules).attribute(images, target=3)

    which agrees with ``lxt`` up to its stabilisers (1e-6 in a layer's denominator, 1e-10 where it
    divides by a value: 6e-6 of the largest relevance).

    Args:
        forward_func: the model or any callable that runs one.
        gamma: the gamma of LRP-gamma in linear layers. None, like zero, is LRP-0.
        conv_gamma: the gamma in convolutions, such as a patch embedding.
        positions: how the relevance of positions is treated: ``"ignore"`` leaves it out;
            ``"separate"`` leaves it to :meth:`attribute_positions`, where rotary angles get half of
            the relevance of what they rotate; ``"add"`` adds it to the tokens' relevance
            (PA-LRP).
        checkpoint: as in :class:`TransformerMethod`.

    Raises:
        InvalidInputError: if a gamma is negative or not a number.

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
        positions: Positions = "ignore",
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, positions=positions, checkpoint=checkpoint)
        self.gamma = gamma
        self.conv_gamma = conv_gamma
        self._rules = attn_lrp(gamma, conv_gamma)

    def _forward_rules(self, arguments: Arguments[Any]) -> ForwardRules:  # noqa: ARG002
        return self._rules
