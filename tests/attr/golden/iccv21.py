"""Generic attention-model explainability, of models with self-attention alone."""

from typing import Any

from torch import Tensor

from captum_transformer import GenericAttentionRelevance
from tests.attr.golden import models
from tests.attr.golden.calls import Call, Traced, logits, probabilities, probability_gradients
from tests.attr.golden.cases import Case, loads
from tests.attr.golden.comparison import Golden

loads("bert_iccv21", attentions=("sdpa", "eager"))(models.bert)
loads("vit_iccv21")(models.vision_transformer)


def relevancy_matrices(case: Case) -> Tensor:
    method = GenericAttentionRelevance(case.model, with_identity=True)

    def only(target: Any) -> Tensor:
        (matrix,) = method.relevance_maps(case.inputs, target, case.extra).values()
        return matrix

    return case.per_target(only)


def without_cls(row: Tensor) -> Tensor:
    return row[:, 1:]


GOLDEN = (
    *(
        Golden(case, key, compute)
        for case in ("vit_iccv21", "bert_iccv21")
        for key, compute in (
            ("logits", Traced(logits)),
            ("attn", Traced(probabilities)),
            ("attn_grad", Traced(probability_gradients)),
            ("gae_R", relevancy_matrices),
        )
    ),
    Golden("vit_iccv21", "gae_cls", Call(GenericAttentionRelevance)),
    Golden("bert_iccv21", "gae_cls", Call(GenericAttentionRelevance, reduce=without_cls)),
)
