"""XAI for Transformers: Better Explanations through Conservative Propagation."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer import ConservativeLRP
from tests.attr.golden import models
from tests.attr.golden.calls import (
    Call,
    Traced,
    entered_at_ids_and_embeddings,
    last_sum,
    logits,
    probabilities,
)
from tests.attr.golden.cases import Case, Stored, loads
from tests.attr.golden.comparison import Golden

loads("icml22_hf", "icml22_hf_conservative", attentions=("sdpa", "eager"))(models.bert)


class PlainBert(nn.Module):
    """The model of the ICML 2022 experiments: unscaled attention, no MLP, unbiased deviations."""

    def __init__(self, hidden: int, heads: int, classes: int, blocks: int) -> None:
        super().__init__()
        self.heads = heads

        def linears(*names: str) -> nn.ModuleDict:
            return nn.ModuleDict({name: nn.Linear(hidden, hidden) for name in names})

        self.attention_layers = nn.ModuleList(
            linears("query", "key", "value") for _ in range(blocks)
        )
        for block in self.attention_layers:
            block["output"] = linears("dense")
        self.pooler = linears("dense")
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.attention_layers:
            query, key, value = (
                block[name](hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            attended = torch.softmax(query @ key.transpose(-1, -2), -1) @ value
            hidden = hidden + block["output"]["dense"](attended.transpose(1, 2).flatten(2))
            spread = hidden.std(-1, keepdim=True) + 1e-12
            hidden = (hidden - hidden.mean(-1, keepdim=True)) / spread
        return self.classifier(torch.tanh(self.pooler["dense"](hidden[:, 0])))


@loads("icml22")
def plain_bert(stored: Stored, attention: str) -> Case:
    sizes = stored.manifest["kwargs"]
    model = PlainBert(sizes["hidden"], sizes["heads"], sizes["n_classes"], sizes["n_blocks"])
    missing, _ = model.load_state_dict(stored.state, strict=False)
    assert not missing
    state = {key: tensor.double() for key, tensor in stored.state.items()}
    ids = stored.inputs["input_ids"]
    hidden = (
        state["embeds.word_embeddings.weight"][ids]
        + state["embeds.position_embeddings.weight"][: ids.shape[1]]
        + state["embeds.token_type_embeddings.weight"][0]
    )
    weight, bias = state["embeds.LayerNorm.weight"], state["embeds.LayerNorm.bias"]
    hidden = nn.functional.layer_norm(hidden, weight.shape, weight, bias, 1e-12)
    return Case(model.double().eval(), hidden, stored.targets(), stored.expected)


@dataclass(frozen=True)
class ExplainedScore:
    """The score that an attribution is compared with: its sum minus the convergence delta."""

    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, case: Case) -> Tensor:
        method = ConservativeLRP(case.model, **self.options)

        def score(target: Any) -> Tensor:
            attribution, delta = method.attribute(
                case.inputs, target, case.extra, return_convergence_delta=True
            )
            return attribution.flatten(1).sum(1) - delta

        return case.per_target(score)

    def __str__(self) -> str:
        return "ConservativeLRP, sum of attribution - delta"


def _plain() -> Iterator[Golden]:
    variants = {
        "gi": {"attention_rule": False, "layer_norm_rule": False},
        "AH": {"layer_norm_rule": False},
        "AH_LN": {},
        "AH_LN_mean": {"hold_mean": True},
    }
    gammas = {"": {}, ".gamma0.01": {"gamma": 0.01}, ".gamma_mixed": {"gamma": [0.05, 0.0, 0.02]}}
    for suffix, gamma in gammas.items():
        for variant, options in variants.items():
            call = Call(ConservativeLRP, options | gamma)
            yield Golden("icml22", f"R.{variant}{suffix}", call)
        if gamma:
            yield Golden("icml22", f"logits{suffix}", ExplainedScore(gamma), at_targets=True)


def _transformers(case: str) -> Iterator[Golden]:
    noise = 1e-12 if case == "icml22_hf_conservative" else 0.0
    variants = {
        "gi": {"attention_rule": False, "layer_norm_rule": False},
        "AH": {"layer_norm_rule": False},
        "LN": {"attention_rule": False},
        "AH_LN": {},
    }
    for variant, options in variants.items():
        for call in entered_at_ids_and_embeddings(ConservativeLRP, options):
            yield Golden(case, f"R.{variant}", call, absolute=noise)
        if case == "icml22_hf":
            total = Call(ConservativeLRP, options, reduce=last_sum)
            yield Golden(case, f"sum_R.{variant}", total)
    yield Golden(case, "target_logit", ExplainedScore())


GOLDEN = (
    *(
        Golden(case, "logits", Traced(logits))
        for case in ("icml22", "icml22_hf", "icml22_hf_conservative")
    ),
    Golden("icml22", "attn", Traced(probabilities)),
    *_plain(),
    *_transformers("icml22_hf"),
    *_transformers("icml22_hf_conservative"),
)
