"""AttnLRP, on language models."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from captum_transformer import AttnLRP, ConservativeLRP
from tests.attr.golden import models
from tests.attr.golden.calls import Call, Traced, entered_at_ids_and_embeddings, logits
from tests.attr.golden.cases import Case, Stored, loads
from tests.attr.golden.comparison import EXACT, Golden

BERT = "attnlrp_lxt_bert"
LANGUAGE_MODELS = tuple(f"attnlrp_lxt_{name}" for name in ("gpt2", "llama", "qwen2", "qwen3"))
# Transformers' RMSNorm and rotary embedding run in float32 whatever the model's precision.
IN_SINGLE = 1e-6
PLAIN = {"attention_rule": False, "layer_norm_rule": False}

loads(BERT, attentions=("sdpa", "eager"))(models.bert)


@loads(*LANGUAGE_MODELS, attentions=("sdpa", "eager"))
def language_model(stored: Stored, attention: str) -> Case:
    model = models.pretrained(stored, attention)
    ids = stored.inputs["input_ids"]
    last = ids.shape[1] - 1
    targets = [[(last, word) for word in target.tolist()] for target in stored.targets()]
    return Case(model, ids, targets, stored.expected)


def last_logits(forward, case: Case) -> Tensor:
    return logits(forward, case)[:, -1]


@dataclass(frozen=True)
class InSingle:
    """A call on the model in single precision."""

    call: Call

    def __call__(self, case: Case) -> Tensor:
        single = replace(case, model=copy.deepcopy(case.model).float())
        return self.call(single).double()

    def __str__(self) -> str:
        return f"{self.call}, float32"


def _relevance(case: str, tolerance: float) -> Iterator[Golden]:
    for call in entered_at_ids_and_embeddings(AttnLRP, {}):
        yield Golden(case, "relevance", call, tolerance)
    for call in entered_at_ids_and_embeddings(ConservativeLRP, PLAIN):
        # The reference attends with probabilities rounded to float32, as eager attention does.
        yield Golden(case, "plain_gradient_x_input", call, 5 * tolerance)
    yield Golden(case, "relevance_float32_run", InSingle(Call(AttnLRP)), 1e-5)


GOLDEN = (
    Golden(BERT, "logits", Traced(logits)),
    *_relevance(BERT, EXACT),
    *(Golden(case, "logits", Traced(last_logits), IN_SINGLE) for case in LANGUAGE_MODELS),
    *_relevance("attnlrp_lxt_gpt2", EXACT),
    *(golden for case in LANGUAGE_MODELS[1:] for golden in _relevance(case, IN_SINGLE)),
)
