"""A curve of scores over the share of places that were changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_transformer.errors import InvalidInputError


@dataclass(frozen=True)
class Curve:
    """The scores of each sample while more and more of its places are changed.

    Attributes:
        fractions: The shares of places that were changed, in increasing order: ``(F,)``.
        scores: A score for each sample and fraction: ``(B, F)``.
        predictions: The class with the highest score: ``(B, F)``; None if there is only one.

    Raises:
        InvalidInputError: If the shapes don't belong together.

    Example:
        >>> curve = Curve(
        ...     fractions=torch.tensor([0.0, 0.5, 1.0]),
        ...     scores=torch.tensor([[0.9, 0.6, 0.1], [0.8, 0.8, 0.8]]),
        ...     predictions=torch.tensor([[1, 1, 0], [2, 2, 2]]),
        ... )
        >>> curve.area()
        tensor([0.5500, 0.8000])
        >>> curve.accuracy(torch.tensor([1, 0]))
        tensor([0.5000, 0.5000, 0.0000])
    """

    fractions: Tensor
    scores: Tensor
    predictions: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(self.scores.shape)]
        if self.predictions is not None:
            shapes.append(tuple(self.predictions.shape))
        if self.fractions.ndim != 1 or any(
            len(shape) != 2 or shape[1] != len(self.fractions) for shape in shapes
        ):
            raise InvalidInputError(
                "A curve needs fractions (F,), scores (B, F) and predictions (B, F) or None, got "
                f"fractions {tuple(self.fractions.shape)}, then {shapes}."
            )

    def area(self, *, start_at_zero: bool = True, normalized: bool = True) -> Tensor:
        """The area under each sample's curve, by the trapezoidal rule.

        Args:
            start_at_zero: Whether the point at fraction 0, the unchanged input, counts. Papers
                that list steps of 10 % to 90 % leave it out.
            normalized: Divide by the span of the fractions. The area then lies between the lowest
                and the highest score whatever the fractions are. False gives the plain area, as
                ``sklearn.metrics.auc`` does: at most 0.8 for probabilities between 10 % and 90 %.

        Returns:
            ``(B,)``.

        Raises:
            InvalidInputError: If there are fewer than two points, or the point at 0 is wanted and
                missing.
        """
        fractions, scores = self.fractions, self.scores
        if self._zero_missing() and start_at_zero:
            raise InvalidInputError(
                "The curve has no point at fraction 0. Compute it with one, fractions=(0.0, ...), "
                "or leave it out: area(start_at_zero=False)."
            )
        if not start_at_zero and not self._zero_missing():
            fractions, scores = fractions[1:], scores[:, 1:]
        if len(fractions) < 2:
            raise InvalidInputError(
                f"An area needs at least two points, and {len(fractions)} are left of "
                f"{len(self.fractions)}."
            )
        area = torch.trapezoid(scores, fractions.to(scores), dim=1)
        return area / (fractions[-1] - fractions[0]).to(scores) if normalized else area

    def hits(self, labels: Tensor | Sequence[int] | None = None) -> Curve:
        """Returns a curve that is one where a sample's prediction is right, and zero elsewhere.

        Its mean over the samples is the accuracy, the mean of its areas is the area under the
        accuracy curve, and the areas of the samples give confidence intervals for it.

        Args:
            labels: Class ids ``(B,)``; None for the predictions at fraction 0.

        Returns:
            A curve with the same fractions and predictions.

        Raises:
            InvalidInputError: If there are no predictions, or the labels don't fit.
        """
        if self.predictions is None:
            raise InvalidInputError(
                "This curve has no predictions: the model returned one score per sample. Give a "
                "function that returns a score per class."
            )
        if labels is None:
            if self._zero_missing():
                raise InvalidInputError(
                    "The curve has no point at fraction 0, and so no original predictions. Pass "
                    "labels, or compute it with fractions=(0.0, ...)."
                )
            labels = self.predictions[:, 0]
        labels = torch.as_tensor(labels, device=self.predictions.device)
        if labels.shape != self.predictions.shape[:1]:
            raise InvalidInputError(
                f"labels must be class ids of shape ({len(self.predictions)},), got "
                f"{tuple(labels.shape)}."
            )
        right = (self.predictions == labels[:, None]).to(self.scores.dtype)
        return Curve(self.fractions, right, self.predictions)

    def accuracy(self, labels: Tensor | Sequence[int] | None = None) -> Tensor:
        """The share of samples with the right prediction.

        Args:
            labels: As in :meth:`hits`.

        Returns:
            ``(F,)``.
        """
        return self.hits(labels).mean()

    def mean(self) -> Tensor:
        """The mean curve of all samples: ``(F,)``."""
        return self.scores.mean(0)

    @staticmethod
    def cat(curves: Sequence[Curve]) -> Curve:
        """Joins the curves of several batches.

        Args:
            curves: Curves with the same fractions.

        Returns:
            The curve of all samples.

        Raises:
            InvalidInputError: If there are no curves, or their fractions differ.
        """
        if not curves or any(not torch.equal(c.fractions, curves[0].fractions) for c in curves):
            raise InvalidInputError(
                "Curves can be joined if they have the same fractions, got "
                f"{[c.fractions.tolist() for c in curves]}."
            )
        predictions = [c.predictions for c in curves if c.predictions is not None]
        return Curve(
            curves[0].fractions,
            torch.cat([c.scores for c in curves]),
            torch.cat(predictions) if len(predictions) == len(curves) else None,
        )

    def _zero_missing(self) -> bool:
        return not len(self.fractions) or bool(self.fractions[0] != 0)
