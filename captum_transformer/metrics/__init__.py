"""Metrics for explanations: batched, on tensors, on the device of their inputs."""

from captum_transformer.metrics.activation_curve import activation_curve, pruning_curve
from captum_transformer.metrics.conservation import Conservation, conservation
from captum_transformer.metrics.curve import Curve
from captum_transformer.metrics.localisation import (
    boxes_to_masks,
    energy_inside,
    grid_pointing_game,
    pointing_game,
)
from captum_transformer.metrics.pixel_perturbation import black, pixel_perturbation
from captum_transformer.metrics.places import place_shape, rank_places, replace_places
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
from captum_transformer.metrics.token_removal import token_removal

__all__ = [
    "Conservation",
    "Curve",
    "RationaleScores",
    "SegmentationScores",
    "activation_curve",
    "average_ranks",
    "black",
    "boxes_to_masks",
    "class_sensitivity",
    "completeness",
    "conservation",
    "energy_inside",
    "grid_pointing_game",
    "model_randomisation",
    "pixel_perturbation",
    "place_shape",
    "pointing_game",
    "pruning_curve",
    "rank_correlation",
    "rank_places",
    "rationale_auprc",
    "rationale_scores",
    "replace_places",
    "segmentation_scores",
    "token_removal",
]
