"""Transformer Interpretability Beyond Attention Visualization, and what it compares with."""

from functools import partial

from torch import Tensor

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from tests.attr.golden import models
from tests.attr.golden.calls import (
    Call,
    FirstTarget,
    Traced,
    logits,
    probabilities,
    probability_gradients,
    probability_relevance,
)
from tests.attr.golden.cases import loads
from tests.attr.golden.comparison import EXACT, LRP, Golden

loads("bert_cvpr21", attentions=("sdpa", "eager"))(models.bert)
loads("vit_cvpr21")(models.vision_transformer)


def channel_sum(pixels: Tensor) -> Tensor:
    return pixels.sum(1)


def first_and_second_layer(method: type, **options: object) -> tuple[Call, Call]:
    return Call(method, options), Call(method, options | {"start_layer": 1})


VIT = partial(Golden, "vit_cvpr21")
ATTRIBUTION = first_and_second_layer(TransformerAttribution)
LRP_ROLLOUT = first_and_second_layer(TransformerAttribution, gradient_weighting=False)
ROLLOUT = tuple(map(FirstTarget, first_and_second_layer(AttentionRollout)))
TO_PIXELS = Call(
    TransformerAttribution, {"propagate_to_input": True}, tokens=False, reduce=channel_sum
)
ABLATION = {"gradient_weighting": True}

# Of BERT, the authors overwrite the row that belongs to [CLS].
BERT = partial(Golden, "bert_cvpr21", without_cls=True)
TO_EMBEDDINGS = Call(
    TransformerAttribution, {"propagate_to_input": True}, of=models.from_hidden_states
)

GOLDEN = (
    *(
        Golden(case, key, Traced(read), tolerance)
        for case in ("vit_cvpr21", "bert_cvpr21")
        for key, read, tolerance in (
            ("logits", logits, EXACT),
            ("attn", probabilities, EXACT),
            ("attn_grad", probability_gradients, EXACT),
            ("attn_relevance", probability_relevance, LRP),
        )
    ),
    VIT("transformer_attribution.start_layer0", ATTRIBUTION[0], LRP),
    VIT("transformer_attribution.start_layer1", ATTRIBUTION[1], LRP),
    VIT("lrp_rollout.start_layer0", LRP_ROLLOUT[0], LRP),
    VIT("lrp_rollout.start_layer1", LRP_ROLLOUT[1], LRP),
    VIT("full", TO_PIXELS, LRP),
    VIT("last_layer", Call(PartialLRP), LRP),
    VIT("second_layer", Call(PartialLRP, {"layer": 1}), LRP),
    VIT("last_layer.is_ablation", Call(PartialLRP, ABLATION), LRP),
    VIT("second_layer.is_ablation", Call(PartialLRP, {"layer": 1} | ABLATION), LRP),
    VIT("last_layer_attn", Call(RawAttention)),
    VIT("attn_gradcam", Call(AttentionGradCam)),
    VIT("attn_rollout.start_layer0", ROLLOUT[0]),
    VIT("attn_rollout.start_layer1", ROLLOUT[1]),
    *(
        BERT(
            f"transformer_attribution.start_layer{start}",
            Call(TransformerAttribution, {"start_layer": start, "normalize_rows": True}),
            LRP,
        )
        for start in range(4)
    ),
    BERT("lrp_last_layer", Call(PartialLRP), LRP),
    BERT("full_lrp", TO_EMBEDDINGS, LRP),
    BERT("attn_last_layer", FirstTarget(Call(RawAttention))),
    BERT("attn_gradcam", Call(AttentionGradCam, {"pooling": "map"})),
    BERT("rollout.start_layer0", ROLLOUT[0]),
    BERT("rollout.start_layer1", ROLLOUT[1]),
)
