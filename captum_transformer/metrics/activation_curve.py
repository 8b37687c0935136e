"""Tokens revealed or pruned in the order of their relevance: Ali et al., ICML 2022."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from captum._utils.typing import TargetType
from torch import Tensor

from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics.curve import Curve
from captum_transformer.metrics.places import (
    Baselines,
    Order,
    as_baselines,
    counts,
    keep_mask,
    place_relevance,
    rank_places,
    replace_places,
)
from captum_transformer.metrics.variations import Variations, read_curve, run_replacing

CURVE_FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The steps of the authors' code."""


def activation_curve(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    baselines: Baselines,
    additional_forward_kwargs: Mapping[str, Any] | None = None,
    keep: Tensor | None = None,
    fractions: Sequence[float] = CURVE_FRACTIONS,
    softmax: bool = True,
    perturbations_per_eval: int = 1,
    show_progress: bool = False,
) -> Curve:
    r"""The activation task of the ICML 2022 paper (section 5), and its AUAC.

    All tokens of an input are replaced by a baseline and then restored, the most relevant first;
    the curve is the target's probability. ``curve.area()`` is the AUAC of each sample, by the
    trapezoidal rule over eleven fractions as in the authors' notebook. A faithful explanation has
    a large area.

    Tokens are covered, not removed. The authors' code replaces each word by [UNK], also [CLS] and
    [SEP], and only keeps padding: ``baselines=tokenizer.unk_token_id, keep=attention_mask == 0``.
    Embeddings can be zeroed instead: ``baselines=0``. With pixels and a blurred image this is
    the insertion metric. A fraction of the places outside ``keep`` is rounded up to whole
    places, as in the authors' code. Due to a rounding error, that code takes four of ten
    places for a fraction of 0.3; this function takes three. Ties are broken in reading order.

    Args:
        forward_func: The model, or any function that returns scores ``(B, classes)``, as in Captum.
        inputs: Token ids ``(B, N)``, embeddings ``(B, N, D)`` or images ``(B, C, H, W)``, or a
            mapping of one name to them.
        attributions: Relevance for each place, or for each of its features, which are summed up.
        target: The class whose probability the curve shows, in any of Captum's forms. The authors'
            code takes the label.
        additional_forward_args: Further arguments by position, as in Captum: masks, token types.
        baselines: The replacement for a covered token: an id, a number, or a tensor that
            broadcasts to the inputs.
        additional_forward_kwargs: Further arguments by name.
        keep: Places that are never covered, booleans or zeros and ones ``(B, N)``: padding, and
            special tokens if wanted.
        fractions: The fractions of places that are restored, increasing.
        softmax: Whether the curve shows probabilities instead of the scores as returned.
        perturbations_per_eval: How many steps of all samples go through the model together.
        show_progress: Whether to show a progress bar.

    Returns:
        The scores and the predictions at each fraction.

    Raises:
        InvalidInputError: If the shapes don't belong together, or the relevance isn't finite.
        AmbiguousOutputError: If the model doesn't return scores.

    References:
        `XAI for Transformers: Better Explanations through Conservative Propagation
        <https://arxiv.org/abs/2202.07304>`_.

    Example:
        >>> words = torch.tensor([[4, 7, 5]])
        >>> def positive(ids):  # how many sevens there are
        ...     count = (ids == 7).sum(1).float()
        ...     return torch.stack([-count, count], 1)
        >>> right = activation_curve(positive, words, torch.tensor([[0, 1, 0]]), 1, baselines=1)
        >>> wrong = activation_curve(positive, words, torch.tensor([[1, 0, 1]]), 1, baselines=1)
        >>> bool(right.area() > wrong.area())
        True
    """
    shares, outputs = _covered(
        Variations(forward_func, inputs, additional_forward_args, additional_forward_kwargs),
        attributions,
        order="positive",
        reveal=True,
        absolute=False,
        baselines=baselines,
        keep=keep,
        fractions=fractions,
        perturbations_per_eval=perturbations_per_eval,
        show_progress=show_progress,
    )
    return read_curve(shares, outputs, target, softmax=softmax)


def pruning_curve(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    additional_forward_args: Any = None,
    *,
    baselines: Baselines,
    additional_forward_kwargs: Mapping[str, Any] | None = None,
    keep: Tensor | None = None,
    absolute: bool = True,
    fractions: Sequence[float] = CURVE_FRACTIONS,
    perturbations_per_eval: int = 1,
    show_progress: bool = False,
) -> Curve:
    r"""The pruning task of the ICML 2022 paper (section 5), and its AU-MSE.

    Tokens are covered, the least relevant first; the curve is the squared distance between the
    scores of the complete and the pruned input, :math:`\lVert f(x) - f(x_{pruned}) \rVert^2`,
    summed over classes as in the authors' code. The *mean* is over samples, ``curve.mean()``.
    ``curve.area()`` is the AU-MSE of each sample: a faithful explanation has a small one.

    Args:
        forward_func: The model, or any function that returns scores ``(B, classes)``, as in
            Captum: logits, to compare the numbers with those of the paper.
        inputs: As in :func:`activation_curve`.
        attributions: As in :func:`activation_curve`.
        additional_forward_args: As in :func:`activation_curve`.
        baselines: As in :func:`activation_curve`.
        additional_forward_kwargs: As in :func:`activation_curve`.
        keep: Places that are never covered, as in :func:`activation_curve`.
        absolute: Whether tokens are ordered by absolute relevance, as in the authors' code, so
            that strong evidence against the class also counts as relevant.
        fractions: The fractions of places that are covered, increasing. The curve always starts at
            0, the complete input.
        perturbations_per_eval: As in :func:`activation_curve`.
        show_progress: As in :func:`activation_curve`.

    Returns:
        The squared distances and the predictions at each fraction.

    Raises:
        InvalidInputError: If the shapes don't belong together, or the relevance isn't finite.
        AmbiguousOutputError: If the model doesn't return scores.

    References:
        `XAI for Transformers: Better Explanations through Conservative Propagation
        <https://arxiv.org/abs/2202.07304>`_.

    Example:
        >>> embeddings = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> curve = pruning_curve(
        ...     lambda x: x.sum(1), embeddings, embeddings, baselines=0, fractions=(0, 0.5, 1)
        ... )
        >>> curve.scores
        tensor([[0., 1., 5.]])
    """
    shares, outputs = _covered(
        Variations(forward_func, inputs, additional_forward_args, additional_forward_kwargs),
        attributions,
        order="negative",
        reveal=False,
        absolute=absolute,
        baselines=baselines,
        keep=keep,
        fractions=(0.0, *fractions) if fractions and fractions[0] else fractions,
        perturbations_per_eval=perturbations_per_eval,
        show_progress=show_progress,
    )
    distance = (outputs - outputs[:, :1]).square().sum(2)
    predictions = outputs.argmax(2) if outputs.shape[2] > 1 else None
    return Curve(outputs.new_tensor(shares), distance, predictions)


def _covered(
    variations: Variations,
    attributions: Any,
    *,
    order: Order,
    reveal: bool,
    absolute: bool,
    baselines: Baselines,
    keep: Tensor | None,
    fractions: Sequence[float],
    perturbations_per_eval: int,
    show_progress: bool,
) -> tuple[list[float], Tensor]:
    """Returns the fractions, and the model's outputs as places are covered or revealed in order."""
    if len(variations.tensors) != 1:
        raise InvalidInputError(
            "inputs must be the one tensor whose tokens are covered, got shapes "
            f"{[tuple(t.shape) for t in variations.tensors]}. Masks and token types go into "
            "additional_forward_args or additional_forward_kwargs."
        )
    (inputs,) = variations.tensors
    relevance = place_relevance(attributions, inputs)
    kept = keep_mask(keep, relevance)
    rank = rank_places(relevance.abs() if absolute else relevance, order, kept)
    may_change = torch.ones_like(rank, dtype=torch.bool) if kept is None else ~kept
    shares, first = counts(fractions, may_change.sum(1), "up")
    values = as_baselines(baselines, inputs)

    def changed(step: int) -> Tensor:
        among_first = rank < first[:, step, None]
        return replace_places(inputs, values, may_change & (among_first ^ reveal))

    outputs = run_replacing(
        variations,
        changed,
        len(shares),
        perturbations_per_eval=perturbations_per_eval,
        show_progress=show_progress,
        description="activation_curve" if reveal else "pruning_curve",
    )
    return shares, outputs
