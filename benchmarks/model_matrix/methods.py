"""The methods of the matrix, and what they can't promise."""

from collections.abc import Callable
from functools import partial
from typing import Any

from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LeGrad,
    LibraGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)

METHODS: dict[str, Callable[..., Any]] = {
    "TransformerAttribution": TransformerAttribution,
    "full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "AttentionRollout": AttentionRollout,
    "RawAttention": RawAttention,
    "AttentionGradCam": AttentionGradCam,
    "PartialLRP": PartialLRP,
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
    "AttnLRP, gamma": partial(AttnLRP, gamma=0.05, conv_gamma=100.0),
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "LeGrad": LeGrad,
}
# The same map for every target.
SAME_FOR_ALL = frozenset({"AttentionRollout", "RawAttention"})
# These divide by sums that may nearly cancel, so rounding tells in their maps.
MAGNIFY = frozenset({"TransformerAttribution", "full LRP", "PartialLRP"})
# This goes through all layers that way, and at the end the class hardly matters.
THROUGH_ALL = "full LRP"
