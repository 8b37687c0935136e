"""Agreement with the words that people marked as rationale: ERASER's scores."""

from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.calling.precision import widened
from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics.maps import relevance_map, require_truth, share, truth_mask
from captum_transformer.metrics.precision_recall import (
    Interpolation,
    area_under_precision_recall,
)
from captum_transformer.metrics.ties import tied_places


class RationaleScores(NamedTuple):
    """How the most relevant tokens agree with the rationale, sample by sample.

    ERASER's macro-averages are the means of these scores over the samples.

    Attributes:
        precision: The share of the chosen tokens that is in the rationale, ``(samples,)``.
        recall: The share of the rationale that was chosen, ``(samples,)``.
        f1: The harmonic mean of precision and recall, ``(samples,)``.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor


def rationale_scores(
    relevance: Tensor,
    rationale: Tensor,
    *,
    k: int | float | None = None,
    attention_mask: Tensor | None = None,
) -> RationaleScores:
    """Precision, recall and F1 of the k most relevant tokens against a human rationale.

    If tokens are tied at the k-th place, the scores are those expected if ties were broken at
    random, so a constant map gets the chance level.

    Args:
        relevance: The relevance of each token, ``(samples, tokens)``.
        rationale: Which tokens people marked: booleans, or zeros and ones, ``(samples, tokens)``.
        k: How many tokens to choose: a whole number, or a fraction of the sample's tokens between
            zero and one (1.0 is all of them; rounded, at least one token), such as the data set's
            average rationale as in ERASER. None: as many as there are in the rationale, so that
            precision and recall are equal. If a text has fewer tokens, all are chosen.
        attention_mask: One where a token counts, zero at padding and, if they should not count,
            at special tokens: ``(samples, tokens)``.

    Returns:
        Precision, recall and F1, each ``(samples,)``, float64.

    Raises:
        InvalidInputError: If the shapes don't fit, ``k`` is invalid, a value is not finite, or a
            sample has no rationale among the tokens that count.

    Reference:
        `ERASER: A Benchmark to Evaluate Rationalized NLP Models
        <https://arxiv.org/abs/1911.03429>`_.

    Example:
        >>> relevance = torch.tensor([[0.9, 0.1, 0.5, 7.0]])
        >>> rationale = torch.tensor([[1, 1, 0, 0]])
        >>> mask = torch.tensor([[1, 1, 1, 0]])
        >>> precision, recall, f1 = rationale_scores(relevance, rationale, k=1, attention_mask=mask)
        >>> precision.item(), recall.item(), round(f1.item(), 3)
        (1.0, 0.5, 0.667)
    """
    values, truth, counts = _tokens(relevance, rationale, attention_mask)
    length = counts.sum(1)
    size = truth.sum(1)
    chosen = size if k is None else _number(k, length)
    ordered, order = values.masked_fill(~counts, -torch.inf).sort(1, descending=True)
    first, last = tied_places(ordered)
    # How likely each token is among the first k if ties are broken at random.
    odds = ((chosen[:, None] - first) / (last - first + 1)).clamp(0, 1)
    hits = (widened(odds) * truth.gather(1, order)).sum(1)
    precision, recall = hits / chosen, hits / size
    return RationaleScores(precision, recall, share(2 * hits, widened(chosen + size)))


def rationale_auprc(
    relevance: Tensor,
    rationale: Tensor,
    *,
    attention_mask: Tensor | None = None,
    interpolation: Interpolation = "linear",
) -> Tensor:
    """The area under the precision-recall curve of relevance against a human rationale.

    Args:
        relevance: The relevance of each token, ``(samples, tokens)``.
        rationale: Which tokens people marked: booleans, or zeros and ones, ``(samples, tokens)``.
        attention_mask: One where a token counts, zero at padding and, if they should not count,
            at special tokens: ``(samples, tokens)``.
        interpolation: ``"linear"``, the trapezoidal rule, is ERASER's ``auprc``; ``"step"`` is its
            ``average_precision``, which is less favourable to ties.

    Returns:
        Areas ``(samples,)``, float64.

    Raises:
        InvalidInputError: If the shapes don't fit, a value is not finite, or a sample has no
            rationale among the tokens that count.

    Reference:
        `ERASER: A Benchmark to Evaluate Rationalized NLP Models
        <https://arxiv.org/abs/1911.03429>`_.

    Example:
        >>> relevance = torch.tensor([[0.9, 0.5, 0.1]])
        >>> rationale_auprc(relevance, torch.tensor([[1, 0, 1]]))
        tensor([0.7917], dtype=torch.float64)
    """
    if interpolation not in ("step", "linear"):
        raise InvalidInputError(
            f"`interpolation` must be 'step' or 'linear', got {interpolation!r}."
        )
    values, truth, counts = _tokens(relevance, rationale, attention_mask)
    return area_under_precision_recall(values, truth, counts, interpolation=interpolation)


def _tokens(
    relevance: Tensor, rationale: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the relevance, the rationale, and the mask of tokens that count."""
    if relevance.dim() != 2:
        raise InvalidInputError(
            f"Relevance must be of tokens, (samples, tokens), got {tuple(relevance.shape)}. Sum "
            "that of embeddings over their features: relevance.sum(-1)."
        )
    values = relevance_map(relevance)
    truth = truth_mask(rationale, values, "rationale")
    counts = torch.ones_like(truth)
    if attention_mask is not None:
        counts = truth_mask(attention_mask, values, "attention_mask")
    require_truth(truth & counts, "rationale")
    return values, truth & counts, counts


def _number(k: int | float, length: Tensor) -> Tensor:
    """Returns the number of tokens to choose from texts of some lengths."""
    if isinstance(k, float) and 0 < k <= 1:
        return (k * length + 0.5).floor().clamp(min=1)
    if isinstance(k, int) and k >= 1:
        return length.clamp(max=k)
    raise InvalidInputError(
        "`k` must be a whole number of tokens from 1, a fraction of them between 0 and 1, or None "
        f"for as many as there are in the rationale, got {k!r}."
    )
