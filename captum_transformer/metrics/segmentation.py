"""How well a map outlines an object: the segmentation scores of the CVPR 2021 paper."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_transformer.metrics.maps import relevance_map, require_truth, share, truth_mask
from captum_transformer.metrics.precision_recall import area_under_precision_recall


@dataclass(frozen=True)
class SegmentationScores:
    """What :func:`segmentation_scores` counted, sample by sample.

    Over a data set the counts are added up before they are divided, so large objects count for
    more: :meth:`cat` the batches, then take :attr:`pixel_accuracy` and so on of the whole.

    Attributes:
        correct: How many pixels are on the right side, ``(samples,)``.
        labelled: How many pixels count, ``(samples,)``.
        intersection: Pixels that are of a class and were found to be, background first:
            ``(samples, 2)``.
        union: Pixels that are of a class or were found to be: ``(samples, 2)``.
        average_precisions: The area under each sample's precision-recall curve, ``(samples,)``.
    """

    correct: Tensor
    labelled: Tensor
    intersection: Tensor
    union: Tensor
    average_precisions: Tensor

    @staticmethod
    def cat(batches: "Iterable[SegmentationScores]") -> "SegmentationScores":
        """The scores of several batches as those of one.

        Args:
            batches: The scores of each.

        Returns:
            The scores of all samples.
        """
        columns = zip(*(vars(batch).values() for batch in batches), strict=True)
        return SegmentationScores(*(torch.cat(column) for column in columns))

    @property
    def pixel_accuracies(self) -> Tensor:
        """Of each sample: ``(samples,)``."""
        return share(self.correct.double(), self.labelled)

    @property
    def mean_ious(self) -> Tensor:
        """Of each sample, the mean of background and foreground: ``(samples,)``."""
        return share(self.intersection.double(), self.union).mean(1)

    @property
    def pixel_accuracy(self) -> Tensor:
        """Of all pixels of all samples: a scalar."""
        return share(self.correct.sum().double(), self.labelled.sum())

    @property
    def mean_iou(self) -> Tensor:
        """With intersections and unions added up over the samples, as in the paper: a scalar."""
        return share(self.intersection.sum(0).double(), self.union.sum(0)).mean()

    @property
    def mean_average_precision(self) -> Tensor:
        """The mean over samples: a scalar."""
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
    - intersections, unions and correct pixels are added up over the data set, and divided then;
      average precision is averaged over samples;
    - average precision is that of both classes together: the scaled map as the score of being
      foreground and one minus it as that of being background are pooled into one curve. With
      ``foreground_only`` it is the usual one, of the map as a score of foreground pixels.

    A constant map calls all of an image background, and its average precision is chance (a half of
    both classes; the foreground's share of the pixels with ``foreground_only``). The intersection
    over union of a class that is neither there nor predicted is zero, as in the authors' code.

    Args:
        relevance: ``(samples, height, width)``, or ``(samples, channels, height, width)``, whose
            channels are summed. The authors bring relevance of patches to the size of the image
            by bilinear interpolation.
        mask: Which pixels are of the object: booleans, or zeros and ones,
            ``(samples, height, width)``.
        ignore: Which pixels don't count, such as a void border: booleans of the mask's shape.
        foreground_only: What average precision is of.

    Returns:
        The counts, and the scores made of them.

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
    """Each row between zero and one; exactly zero if it is constant, so no mean rounds below it."""
    values = values - values.amin(1, keepdim=True)
    return share(values, values.amax(1, keepdim=True))
