"""Edin et al. (2025): GIM, gradient interaction modifications."""

import math
from collections.abc import Callable
from typing import Any

from captum_transformer.attr.gradient_times_input import GradientTimesInput
from captum_transformer.attr.positional_method import Positions
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.checkpointing import Checkpoint
from captum_transformer.errors import InvalidInputError
from captum_transformer.rules.gradient import gim
from captum_transformer.trace.recorder import ForwardRules


class GIM(GradientTimesInput):
    r"""Gradient x input, with a softmax gradient that doesn't vanish where attention saturates.

    If a softmax is saturated, or several keys have the same content, no single score matters: if
    one is removed, the others compensate. The gradient then misses the sources of these scores. The
    relevance of the inputs is :math:`R_i = x_i \cdot \partial f_c / \partial x_i`, where the
    gradient is changed at

    - the softmax of attention: with :math:`p^T = \mathrm{softmax}(z / T)` of the scores :math:`z`,
      after scaling, masks and caps, the gradient of the scores is

      .. math:: \nabla_{z_i} = p^T_i \, \big(\nabla_{p_i} - \sum_j p^T_j \nabla_{p_j}\big),

      which is that of a softer softmax, up to a factor of :math:`1 / T`;
    - products of several signals: the gradient is distributed, a half for each of two factors. So
      queries and keys get a quarter, values a half, and so does each side of a gated MLP;
    - norms, fused or written in Python: the divisor is a constant (the subtracted mean is not).

    Everything else keeps its gradient: linear maps, residual connections, activations, also those
    written in Python. So does a softmax whose weights are not applied to tokens or channels, such
    as that of a classifier or of a router that chooses experts.

    The rules act on operations, so they work for every model, whether attention is fused, written
    out, or ``flex_attention``. The authors' package changes modules and functions of torch, and
    misses some: on Transformers models either the temperature (``sdpa``) or the shares of queries,
    keys and values (``eager``). If all of its rules apply, the results agree to 1e-9.

    The sum of relevance is not the score, and there is no convergence delta. It costs one forward
    and one backward pass; for fused attention the latter computes the probabilities in blocks of
    queries, so that memory is linear in the number of tokens.

    Args:
        forward_func: the model or any callable that runs one.
        temperature: the temperature of the softmax in the backward pass. One keeps its gradient.
        positions: as in :class:`AttnLRP`.
        checkpoint: as in :class:`TransformerMethod`.

    Reference:
        `GIM: Improved Interpretability for Large Language Models
        <https://arxiv.org/abs/2505.17630>`_.

    Example:
        >>> import torch, transformers
        >>> config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)
        >>> model = transformers.GPT2LMHeadModel(config).eval()
        >>> ids = torch.tensor([[3, 14, 15, 9, 2], [6, 5, 35, 8, 9]])
        >>> GIM(model).attribute(ids, target=[(4, 7), (4, 1)]).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        temperature: float = 2.0,
        positions: Positions = "ignore",
        checkpoint: Checkpoint = False,
    ) -> None:
        super().__init__(forward_func, positions=positions, checkpoint=checkpoint)
        if not 0 < temperature < math.inf:
            raise InvalidInputError(
                f"`temperature` must be a positive number, got {temperature}. At 1 the softmax has "
                "its own gradient, above 1 that of a softer one."
            )
        self.temperature = temperature

    def _forward_rules(self, arguments: Arguments[Any]) -> ForwardRules:  # noqa: ARG002
        return gim(self.temperature)
