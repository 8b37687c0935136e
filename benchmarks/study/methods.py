"""All methods of the study: those of this package, Captum's, and chance."""

from collections.abc import Callable
from functools import partial
from typing import Any

from captum.attr import Attribution, InputXGradient, IntegratedGradients, Saliency
from torch import Tensor

from benchmarks.study.models import MeanOfTokens
from benchmarks.study.pairs import by_bilrp, by_cosine
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
    RelevancePatching,
    TransformerAttribution,
    TransformerMethod,
)

TRANSFORMER: dict[str, Callable[[Any], TransformerMethod]] = {
    "TransformerAttribution": TransformerAttribution,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "ConservativeLRP": ConservativeLRP,
    "ConservativeLRP, AH only": partial(ConservativeLRP, layer_norm_rule=False),
    "AttnLRP": AttnLRP,
    "AttnLRP, gamma": partial(AttnLRP, gamma=0.05, conv_gamma=100),
    "AttnLRP, gamma and positions": partial(AttnLRP, gamma=0.05, conv_gamma=100, positions="add"),
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "Full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "PartialLRP": PartialLRP,
    "LeGrad": LeGrad,
    "AttentionGradCam": AttentionGradCam,
    "AttentionRollout": AttentionRollout,
    "RawAttention": RawAttention,
}
# What the methods of rollout make of a score that several tokens are pooled to.
POOLINGS: dict[str, dict[str, bool]] = {
    ", the papers' row": {"with_identity": True},
    ", without evidence": {"pooled_evidence": False},
}
POOLED: dict[str, Callable[[Any], TransformerMethod]] = TRANSFORMER | {
    f"{method.__name__}{pooling}": partial(method, **options)
    for method in (TransformerAttribution, GenericAttentionRelevance)
    for pooling, options in POOLINGS.items()
}
# LeGrad asks one head about the tokens of all layers: there must be as many in each.
MERGING = {name: make for name, make in POOLED.items() if name != "LeGrad"}
# As the authors' code has it for BERT. Of GradCAM's poolings the one that gives padding nothing.
TEXT: dict[str, Callable[[Any], TransformerMethod]] = TRANSFORMER | {
    "TransformerAttribution": partial(TransformerAttribution, normalize_rows=True),
    "AttentionGradCam": partial(AttentionGradCam, pooling="open"),
}
# What estimates activation patching.
PATCHING: dict[str, Callable[[Any], RelevancePatching]] = {
    "RelevancePatching": RelevancePatching,
    "RelevancePatching, attention not held": partial(RelevancePatching, attention_rule=False),
    "Attribution patching": partial(RelevancePatching, rules={}),
}
# Which pairs of tokens make two inputs similar.
PAIRS: dict[str, Callable[[MeanOfTokens, Tensor, Tensor], Tensor]] = {
    "BiLRP": by_bilrp,
    **{
        f"BiLRP, rank {rank} of {MeanOfTokens.WIDTH}": partial(by_bilrp, rank=rank)
        for rank in (8, 16)
    },
    "BiLRP of AttnLRP": partial(by_bilrp, method=AttnLRP),
    "BiLRP of LibraGrad": partial(by_bilrp, method=LibraGrad),
    "BiLRP of gradient x input": partial(
        by_bilrp, method=partial(ConservativeLRP, attention_rule=False, layer_norm_rule=False)
    ),
    "Cosine of last hidden states": partial(by_cosine, embedded=False),
    "Cosine of word embeddings": partial(by_cosine, embedded=True),
}
CAPTUM: dict[str, Callable[[Any], Attribution]] = {
    "Saliency": Saliency,
    "InputXGradient": InputXGradient,
    "IntegratedGradients": IntegratedGradients,
}
# What these say of a pixel differs from what they say of its neighbours in the same patch.
OF_EACH_VALUE = {
    "AttnLRP, gamma",
    *("ConservativeLRP", "ConservativeLRP, AH only", "AttnLRP", "GIM", "LibraGrad", "Full LRP"),
    *CAPTUM,
}
# Gradients that are weighted by what they are taken at. In front of a LayerNorm they vanish, as its
# result does not depend on the length of its input; the ICML 2022 experiments take them behind it.
OF_STATES = (
    *("ConservativeLRP", "ConservativeLRP, AH only", "AttnLRP", "GIM", "LibraGrad"),
    *("Saliency", "InputXGradient"),
)
RANDOM = "Random"
PIXELS = ", by pixel"
STATES = ", behind embeddings"
INTEGRATION_STEPS = 25


def plain(method: str) -> str:
    """The method's own name, whatever it was applied to."""
    for suffix in (PIXELS, STATES, *POOLINGS):
        method = method.removesuffix(suffix)
    return method
