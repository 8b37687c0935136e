"""How well a map outlines an object: the segmentation scores of the CVPR 2021 paper."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_transformer.calling.precision import widened
from captum_transformer.metrics.maps import relevance_map, require_truth, share, truth_mask
from captum_transformer.metrics.precision_recall import area_under_precision_recall


@dataclass(frozen=True)
class SegmentationScores:
    """The counts of :func:`segmentation_scores` for each sample.

    Over a data set, the counts are added up before they are divided, so large objects count for
    more: join the batches by :meth:`cat`, then read :attr:`pixel_accuracy` and so on.

    Attributes:
        correct: The number of pixels that are classified correctly, ``(samples,)``.
        labelled: The number of pixels that count, ``(samples,)``.
        intersection: The number of pixels that belong to a class and are assigned to it, background
            first: ``(samples, 2)``.
        union: The number of pixels that belong to a class or are assigned to it: ``(samples, 2)``.
        average_precisions: The area under each sample's precision-recall curve, ``(samples,)``.
    """

    correct: Tensor
    labelled: Tensor
    intersection: Tensor
    union: Tensor
    average_precisions: Tensor

    @staticmethod
    def cat(batches: "Iterable[SegmentationScores]") -> "SegmentationScores":
        """Joins the scores of several batches.

        Args:
            batches: The scores of each batch.

        Returns:
            The scores of all samples.
        """
        columns = zip(*(vars(batch).values() for batch in batches), strict=True)
        return SegmentationScores(*(torch.cat(column) for column in columns))

    @property
    def pixel_accuracies(self) -> Tensor:
        """The pixel accuracy of each sample: ``(samples,)``."""
        return share(widened(self.correct), self.labelled)

    @property
    def mean_ious(self) -> Tensor:
        """The mean IoU of background and foreground for each sample: ``(samples,)``."""
        return share(widened(self.intersection), self.union).mean(1)

    @property
    def pixel_accuracy(self) -> Tensor:
        """The pixel accuracy over all pixels of all samples: a scalar."""
        return share(widened(self.correct.sum()), self.labelled.sum())

    @property
    def mean_iou(self) -> Tensor:
        """The mean IoU, with counts added up over the samples as in the paper: a scalar."""
        return share(widened(self.intersection.sum(0)), self.union.sum(0)).mean()

    @property
    def mean_average_precision(self) -> Tensor:
        """The mean of the samples' average precisions: a scalar."""
        return self.average_precisions.mean()


def segmentation_scores(
    relevance: Tensor,
    mask: Tensor,
    *,
    ignore: Tensor | None = None,
    foreground_only: bool = False,
) -> SegmentationScores:
    r"""Uses a map as a segmentation: pixels above its mean are the object.

    The scores are pixel accuracy, intersection over union, averaged over background and foreground,
    and average precision. They are computed as in the authors' code:

    - a map is scaled to between zero and one, and the threshold is its mean;
    - intersections, unions and correct pixels are added up over the data set, and then divided;
      average precision is averaged over samples;
    - average precision is that of both classes together: the scaled map as the score of being
      foreground and one minus it as that of being background are pooled into one curve. With
      ``foreground_only`` it is the usual one, of the map as a score of foreground pixels.

    A constant map classifies the whole image as background, and its average precision is the chance
    level (a half for both classes; the foreground's share of the pixels with ``foreground_only``).
    The intersection over union of a class that is neither present nor predicted is zero, as in the
    authors' code.

    Args:
        relevance: ``(samples, height, width)``, or ``(samples, channels, height, width)``, whose
            channels are summed. The authors bring relevance of patches to the size of the image
            by bilinear interpolation.
        mask: Which pixels belong to the object: booleans, or zeros and ones,
            ``(samples, height, width)``.
        ignore: Which pixels don't count, such as a void border: booleans of the mask's shape.
        foreground_only: Whether average precision is that of the foreground only.

    Returns:
        The counts, and the scores computed from them.

    Raises:
        InvalidInputError: If the shapes don't fit, a value of the map is not finite, or the mask of
            a sample is empty with ``foreground_only``.

    Reference:
        `Transformer Interpretability Beyond Attention Visualization
        <https://arxiv.org/abs/2012.09838>`_, section 4 (ImageNet-Segmentation).

    Example:
        >>> relevance = torch.tensor([[[9.0, 1.0], [5.0, 1.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> scores = segmentation_scores(relevance, mask)
        >>> scores.pixel_accuracy, scores.mean_iou, scores.mean_average_precision
        (tensor(0.7500, dtype=torch.float64), tensor(0.5833, dtype=torch.float64),
         tensor(0.9500, dtype=torch.float64))
    """
    values = relevance_map(relevance)
    truth = truth_mask(mask, values).flatten(1)
    counts = torch.ones_like(truth)
    if ignore is not None:
        counts = ~truth_mask(ignore, values, "ignore").flatten(1)
    if foreground_only:
        require_truth(truth & counts)
    values = _scaled(values.flatten(1))
    found = values > values.mean(1, keepdim=True)
    classes = torch.tensor([False, True], device=values.device)[:, None, None]
    is_class, found_class = truth == classes, found == classes
    intersection = (is_class & found_class & counts).sum(2).T
    union = ((is_class | found_class) & counts).sum(2).T
    if foreground_only:
        areas = area_under_precision_recall(values, truth, counts)
    else:
        constant = (values == 0).all(1, keepdim=True)
        background = torch.where(constant, 0.0, 1 - values)
        areas = area_under_precision_recall(
            torch.cat([background, values], 1),
            torch.cat([~truth, truth], 1),
            torch.cat([counts, counts], 1),
        )
    return SegmentationScores(intersection.sum(1), counts.sum(1), intersection, union, areas)


def _scaled(values: Tensor) -> Tensor:
    """Scales rows to between zero and one; constant ones are zero, so no mean rounds below them."""
    values = values - values.amin(1, keepdim=True)
    return share(values, values.amax(1, keepdim=True))
