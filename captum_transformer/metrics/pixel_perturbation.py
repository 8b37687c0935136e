"""Pixels blackened in the order of their relevance: Chefer, Gur & Wolf, CVPR 2021."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from captum._utils.typing import TargetType
from torch import Tensor

from captum_transformer.calling.precision import widened
from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics.curve import Curve
from captum_transformer.metrics.places import (
    Baselines,
    Order,
    as_baselines,
    counts,
    place_relevance,
    rank_places,
    replace_places,
)
from captum_transformer.metrics.variations import Variations, read_curve, run_replacing

PIXEL_FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The paper's steps, and the unchanged image."""


def pixel_perturbation(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    baselines: Baselines,
    additional_forward_kwargs: Mapping[str, Any] | None = None,
    order: Order = "positive",
    fractions: Sequence[float] = PIXEL_FRACTIONS,
    softmax: bool = True,
    perturbations_per_eval: int = 1,
    show_progress: bool = False,
) -> Curve:
    r"""Positive and negative perturbation of pixels, after section 4 of the CVPR 2021 paper.

    Pixels are removed in the order of their relevance, all channels of a pixel together.
    *Positive*: the most relevant first; for a faithful map the accuracy falls fast, so its area is
    small. *Negative*: the least relevant first; a large area is good.

    The paper's four numbers per method come from maps for the predicted or for the labelled class,
    and one order each; the map that is passed determines the class. The authors' code
    counts predictions that equal the label: ``curve.accuracy(labels)``. The area under that is
    ``curve.hits(labels).area(...)`` for each sample. The paper's steps are 10 % to 90 %,
    ``start_at_zero=False``; that code ends with the accuracies at these steps, so it isn't known
    whether the area was divided by their span.

    A fraction is rounded down to whole pixels, as in the authors' code. Ties in a map are broken in
    reading order.

    Args:
        forward_func: The model, or any function that returns scores ``(B, classes)``, as in Captum.
        inputs: Images ``(B, C, H, W)``, or a mapping of one name to them.
        attributions: Relevance ``(B, H, W)`` or ``(B, 1, H, W)``, or ``(B, C, H, W)``, which is
            summed over channels.
        target: The class whose score the curve shows, in any of Captum's forms. Predictions, and
            so the accuracy, don't depend on it.
        additional_forward_args: Further arguments by position, as in Captum.
        baselines: The value of black for the model: a number, one per channel, or a tensor that
            broadcasts to the images. For images normalised by ``(x - mean) / std`` it is
            :func:`black`, not 0, which is the mean colour.
        additional_forward_kwargs: Further arguments by name.
        order: ``"positive"`` or ``"negative"``.
        fractions: The shares of pixels that are black, increasing.
        softmax: Whether the curve shows probabilities instead of the scores as returned.
        perturbations_per_eval: How many steps of all samples go through the model together.
        show_progress: Whether to show a progress bar.

    Returns:
        The scores and the predictions at each fraction.

    Raises:
        InvalidInputError: If the shapes don't belong together, or the relevance isn't finite.
        AmbiguousOutputError: If the model doesn't return scores.

    References:
        `Transformer Interpretability Beyond Attention Visualization
        <https://arxiv.org/abs/2012.09838>`_.

    Example:
        >>> import timm
        >>> from captum_transformer import TransformerAttribution
        >>> model = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
        >>> images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 3])
        >>> relevance = TransformerAttribution(model).attribute(images, labels)
        >>> curve = pixel_perturbation(
        ...     model, images, relevance, labels, baselines=black(mean=[0.5] * 3, std=[0.5] * 3)
        ... )
        >>> curve.accuracy(labels).shape, curve.hits(labels).area(start_at_zero=False).shape
        (torch.Size([10]), torch.Size([2]))
    """
    variations = Variations(
        forward_func, inputs, additional_forward_args, additional_forward_kwargs
    )
    images = variations.tensors[0]
    if len(variations.tensors) != 1 or images.ndim != 4:
        raise InvalidInputError(
            "inputs must be images (B, C, H, W) alone, got shapes "
            f"{[tuple(t.shape) for t in variations.tensors]}. Pass further arguments of the model "
            "as additional_forward_args or additional_forward_kwargs. For tokens use "
            "token_removal, activation_curve or pruning_curve."
        )
    rank = rank_places(place_relevance(attributions, images), order)
    pixels = torch.full((len(images),), rank.shape[1], device=images.device)
    shares, gone = counts(fractions, pixels, "down")
    values = as_baselines(baselines, images)
    outputs = run_replacing(
        variations,
        lambda f: replace_places(images, values, rank < gone[:, f, None]),
        len(shares),
        perturbations_per_eval=perturbations_per_eval,
        show_progress=show_progress,
        description=f"pixel_perturbation, {order}",
    )
    return read_curve(shares, outputs, target, softmax=softmax)


def black(mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Returns the value of black pixels after normalisation, ``(0 - mean) / std`` per channel.

    Args:
        mean: The mean that is subtracted from each channel.
        std: The number that each channel is divided by.

    Returns:
        ``(C,)`` in double precision if the device has it, for ``baselines``.

    Example:
        >>> black(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]).tolist()
        [-2.117..., -2.035..., -1.804...]
    """
    return -_wide(mean) / _wide(std)


def _wide(values: Sequence[float] | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return widened(values)
    return torch.tensor(values, dtype=torch.float64)
