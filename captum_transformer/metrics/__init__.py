"""Whether explanations are right: metrics on tensors, batched, on the device of their inputs."""

from captum_transformer.metrics.localisation import (
    boxes_to_masks,
    energy_inside,
    grid_pointing_game,
    pointing_game,
)
from captum_transformer.metrics.rank_correlation import average_ranks, rank_correlation
from captum_transformer.metrics.rationales import (
    RationaleScores,
    rationale_auprc,
    rationale_scores,
)
from captum_transformer.metrics.sanity import (
    class_sensitivity,
    completeness,
    model_randomisation,
)
from captum_transformer.metrics.segmentation import SegmentationScores, segmentation_scores

__all__ = [
    "RationaleScores",
    "SegmentationScores",
    "average_ranks",
    "boxes_to_masks",
    "class_sensitivity",
    "completeness",
    "energy_inside",
    "grid_pointing_game",
    "model_randomisation",
    "pointing_game",
    "rank_correlation",
    "rationale_auprc",
    "rationale_scores",
    "segmentation_scores",
]
