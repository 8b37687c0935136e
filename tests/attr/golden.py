"""What the authors' code computes, and which call of this library computes the same.

Prints the table of deviations when run: ``python -m tests.attr.golden``.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerMethod,
)
from captum_transformer.attr.attention_flow_method import gradient_map, output_gradients
from captum_transformer.attr.transformer_attribution import propagated_relevance
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.attention import attention_relevance
from captum_transformer.trace import TracedForward, traced_forward

DATA = Path(__file__).parents[1] / "data"
CASES = tuple(sorted(path.stem for path in DATA.glob("*.safetensors")))

EXACT = 1e-9
# The authors' `Clone` and `Add` divide by `x + 1e-9`.
LRP = 5e-6


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


@dataclass(frozen=True)
class Case:
    """One golden case: a model, its inputs, and for each sample two targets."""

    model: Callable[..., Any]
    input: Tensor
    extra: tuple[Tensor, ...]
    targets: list[Any]
    expected: dict[str, Tensor]

    def per_target(self, compute: Callable[[Any], Tensor]) -> Tensor:
        return torch.stack([compute(target) for target in self.targets], 1)

    def embedded(self) -> "Case":
        """The same from the output of the embedding layer on."""
        bert = self.model.bert
        hidden = bert.embeddings(self.input).detach()

        def from_hidden(hidden: Tensor, mask: Tensor) -> Tensor:
            closed = (1 - mask[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
            encoded = bert.encoder(hidden, attention_mask=closed)[0]
            return self.model.classifier(bert.pooler(encoded))

        return Case(from_hidden, hidden, self.extra, self.targets, self.expected)

    def looked_up(self) -> "Case":
        """The same with word embeddings for ids."""
        vectors = self.model.bert.embeddings.word_embeddings(self.input).detach()

        def from_vectors(vectors: Tensor, mask: Tensor | None = None) -> Any:
            return self.model(inputs_embeds=vectors, attention_mask=mask)

        return Case(from_vectors, vectors, self.extra, self.targets, self.expected)


@cache
def load_case(name: str, attention: str = "sdpa") -> Case:
    """Loads a case in float64, on Transformers models with one of their implementations."""
    tensors = load_file(DATA / f"{name}.safetensors")
    manifest = json.loads((DATA / f"{name}.json").read_text())["modern_model"]
    given = {key: t for key, t in tensors.items() if not key.startswith("model.")}
    state = {
        key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")
    }
    targets: list[Any] = list(given["input.targets"].unbind(1))
    if name == "icml22":
        model, inputs = _plain_bert(manifest["kwargs"], state, given["input.input_ids"])
    elif "timm" in manifest:
        model = timm.models.vision_transformer.VisionTransformer(**manifest["kwargs"])
        model.load_state_dict(state)
        model.norm.eps = manifest["overrides"].get("model.norm.eps", model.norm.eps)
        inputs = given["input.pixel_values"].double()
    else:
        config = transformers.BertConfig(**manifest["kwargs"], attn_implementation=attention)
        model = getattr(transformers, manifest["class"].rpartition(".")[2])(config)
        model.load_state_dict(state)
        inputs = given["input.input_ids"]
    if "input.positions" in given:
        positions = given["input.positions"].tolist()
        targets = [list(zip(positions, target.tolist(), strict=True)) for target in targets]
    extra = tuple(given[key] for key in ("input.attention_mask",) if key in given)
    expected = {
        key.removeprefix("expected."): t for key, t in given.items() if key.startswith("expected.")
    }
    return Case(model.double().eval(), inputs, extra, targets, expected)


def _plain_bert(
    sizes: dict[str, int], state: dict[str, Tensor], ids: Tensor
) -> tuple[PlainBert, Tensor]:
    model = PlainBert(sizes["hidden"], sizes["heads"], sizes["n_classes"], sizes["n_blocks"])
    missing, _ = model.load_state_dict(state, strict=False)
    assert not missing
    state = {key: t.double() for key, t in state.items()}
    hidden = (
        state["embeds.word_embeddings.weight"][ids]
        + state["embeds.position_embeddings.weight"][: ids.shape[1]]
        + state["embeds.token_type_embeddings.weight"][0]
    )
    weight, bias = state["embeds.LayerNorm.weight"], state["embeds.LayerNorm.bias"]
    return model, nn.functional.layer_norm(hidden, weight.shape, weight, bias, 1e-12)


@dataclass(frozen=True)
class Call:
    """A method called on a case, once per target, on the whole batch."""

    method: type[TransformerMethod]
    options: dict[str, Any] = field(default_factory=dict)
    tokens: bool = True
    of: Callable[[Case], Case] = lambda case: case
    reduce: Callable[[Tensor], Tensor] = lambda attribution: attribution

    def __call__(self, case: Case) -> Tensor:
        case = self.of(case)
        method = self.method(case.model, **self.options)
        attribute = method.attribute_tokens if self.tokens else method.attribute
        return case.per_target(
            lambda target: self.reduce(attribute(case.input, target, case.extra))
        )

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.method.__name__}({options})"


@dataclass(frozen=True)
class FirstTarget:
    """A call whose result is the same for all targets."""

    call: Call

    def __call__(self, case: Case) -> Tensor:
        both = self.call(case)
        assert torch.equal(both[:, 0], both[:, 1])
        return both[:, 0]

    def __str__(self) -> str:
        return str(self.call)


@dataclass(frozen=True)
class Traced:
    """Something read off the traced forward pass, stacked over the attention calls."""

    read: Callable[[TracedForward, Case], Tensor]

    def __call__(self, case: Case) -> Tensor:
        keep = flow.KEEP | relevance.KEEP
        with traced_forward(case.model, (case.input,), case.extra, keep=keep) as forward:
            return self.read(forward, case)

    def __str__(self) -> str:
        return f"traced_forward, {self.read.__name__}"


ALL = slice(None)


def logits(forward: TracedForward, case: Case) -> Tensor:
    output = forward.output
    return (output if isinstance(output, Tensor) else output.logits).detach()


def probabilities(forward: TracedForward, case: Case) -> Tensor:
    return torch.stack([call.probabilities(ALL) for call in forward.calls], 1).detach()


def probability_gradients(forward: TracedForward, case: Case) -> Tensor:
    def read(target: Any) -> Tensor:
        selected, _ = forward.select(target)
        maps = gradient_map(output_gradients(forward, selected, forward.calls))
        return torch.stack([maps(call, ALL) for call in forward.calls], 1).detach()

    return case.per_target(read)


def probability_relevance(forward: TracedForward, case: Case) -> Tensor:
    def read(target: Any) -> Tensor:
        points = [call.output for call in forward.calls]
        reached = propagated_relevance(forward, *forward.select(target), points)
        maps = [attention_relevance(call, reached[call.output], ALL) for call in forward.calls]
        return torch.stack(maps, 1).detach()

    return case.per_target(read)


def relevancy_matrices(case: Case) -> Tensor:
    method = GenericAttentionRelevance(case.model)

    def only(target: Any) -> Tensor:
        (matrix,) = method.relevance_maps(case.input, target, case.extra).values()
        return matrix

    return case.per_target(only)


@dataclass(frozen=True)
class ExplainedScore:
    """The score that an attribution is compared with: its sum minus the convergence delta."""

    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, case: Case) -> Tensor:
        method = ConservativeLRP(case.model, **self.options)

        def score(target: Any) -> Tensor:
            attribution, delta = method.attribute(
                case.input, target, case.extra, return_convergence_delta=True
            )
            return attribution.flatten(1).sum(1) - delta

        return case.per_target(score)

    def __str__(self) -> str:
        return "ConservativeLRP, sum of attribution - delta"


@dataclass(frozen=True)
class Golden:
    """One expected tensor and what computes it.

    Attributes:
        case: the golden case.
        key: the name of the expected tensor in it.
        compute: from the case to what this library says.
        tolerance: relative to the largest expected value.
        absolute: allowed in any case, where the expected values themselves are rounding errors.
        without_cls: leave out the first token, which the authors overwrite.
        at_targets: of the expected logits, only the targets' are compared.
    """

    case: str
    key: str
    compute: Callable[[Case], Tensor]
    tolerance: float = EXACT
    absolute: float = 0.0
    without_cls: bool = False
    at_targets: bool = False

    @property
    def name(self) -> str:
        return f"{self.case}-{self.key}"

    def values(self, attention: str = "sdpa") -> tuple[Tensor, Tensor]:
        """What is computed and what is expected."""
        case = load_case(self.case, attention)
        actual, expected = self.compute(case), case.expected[self.key].nan_to_num(nan=0.0)
        if self.at_targets:
            expected = expected.gather(1, torch.stack(case.targets, 1))
        if self.without_cls:
            actual, expected = actual[..., 1:], expected[..., 1:]
        return actual, expected

    @property
    def has_implementations(self) -> bool:
        return self.case.startswith("bert") or "_hf" in self.case


def _bert_cvpr21() -> Iterator[Golden]:
    for start in range(4):
        options = {"start_layer": start, "normalize_rows": True}
        yield Golden(
            "bert_cvpr21",
            f"transformer_attribution.start_layer{start}",
            Call(TransformerAttribution, options),
            LRP,
            without_cls=True,
        )


def _conservative(case: str) -> Iterator[Golden]:
    noise = 1e-12 if case == "icml22_hf_conservative" else 0.0
    variants = {
        "gi": {"attention_rule": False, "layer_norm_rule": False},
        "AH": {"layer_norm_rule": False},
        "LN": {"attention_rule": False},
        "AH_LN": {},
    }
    for variant, options in variants.items():
        ids = Call(ConservativeLRP, options, tokens=False)
        tokens = Call(ConservativeLRP, options)
        vectors = Call(
            ConservativeLRP, options, tokens=False, of=Case.looked_up, reduce=lambda r: r.sum(-1)
        )
        vector_tokens = Call(ConservativeLRP, options, of=Case.looked_up)
        for call in (ids, tokens, vectors, vector_tokens):
            yield Golden(case, f"R.{variant}", call, absolute=noise)
        if case == "icml22_hf":
            total = Call(ConservativeLRP, options, reduce=lambda r: r.sum(1))
            yield Golden(case, f"sum_R.{variant}", total)


def _icml22() -> Iterator[Golden]:
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


GOLDEN: tuple[Golden, ...] = (
    *(Golden(case, "logits", Traced(logits)) for case in CASES),
    *(Golden(c, "attn", Traced(probabilities)) for c in CASES if "_hf" not in c),
    *(Golden(c, "attn_grad", Traced(probability_gradients)) for c in CASES if "icml" not in c),
    *(
        Golden(case, "attn_relevance", Traced(probability_relevance), LRP)
        for case in ("vit_cvpr21", "bert_cvpr21")
    ),
    *(
        Golden("vit_cvpr21", key, call, tolerance)
        for key, tolerance, call in (
            ("transformer_attribution.start_layer0", LRP, Call(TransformerAttribution)),
            (
                "transformer_attribution.start_layer1",
                LRP,
                Call(TransformerAttribution, {"start_layer": 1}),
            ),
            (
                "lrp_rollout.start_layer0",
                LRP,
                Call(TransformerAttribution, {"gradient_weighting": False}),
            ),
            (
                "lrp_rollout.start_layer1",
                LRP,
                Call(TransformerAttribution, {"gradient_weighting": False, "start_layer": 1}),
            ),
            (
                "full",
                LRP,
                Call(
                    TransformerAttribution,
                    {"propagate_to_input": True},
                    tokens=False,
                    reduce=lambda pixels: pixels.sum(1),
                ),
            ),
            ("last_layer", LRP, Call(PartialLRP)),
            ("second_layer", LRP, Call(PartialLRP, {"layer": 1})),
            ("last_layer.is_ablation", LRP, Call(PartialLRP, {"gradient_weighting": True})),
            (
                "second_layer.is_ablation",
                LRP,
                Call(PartialLRP, {"layer": 1, "gradient_weighting": True}),
            ),
            ("last_layer_attn", EXACT, Call(RawAttention)),
            ("attn_gradcam", EXACT, Call(AttentionGradCam)),
            ("attn_rollout.start_layer0", EXACT, FirstTarget(Call(AttentionRollout))),
            (
                "attn_rollout.start_layer1",
                EXACT,
                FirstTarget(Call(AttentionRollout, {"start_layer": 1})),
            ),
        )
    ),
    *_bert_cvpr21(),
    *(
        Golden("bert_cvpr21", key, call, tolerance, without_cls=True)
        for key, tolerance, call in (
            ("lrp_last_layer", LRP, Call(PartialLRP)),
            (
                "full_lrp",
                LRP,
                Call(TransformerAttribution, {"propagate_to_input": True}, of=Case.embedded),
            ),
            ("attn_last_layer", EXACT, FirstTarget(Call(RawAttention))),
            ("attn_gradcam", EXACT, Call(AttentionGradCam, {"pooling": "map"})),
            ("rollout.start_layer0", EXACT, FirstTarget(Call(AttentionRollout))),
            (
                "rollout.start_layer1",
                EXACT,
                FirstTarget(Call(AttentionRollout, {"start_layer": 1})),
            ),
        )
    ),
    *(Golden(case, "gae_R", relevancy_matrices) for case in ("vit_iccv21", "bert_iccv21")),
    Golden("vit_iccv21", "gae_cls", Call(GenericAttentionRelevance)),
    Golden(
        "bert_iccv21", "gae_cls", Call(GenericAttentionRelevance, reduce=lambda row: row[:, 1:])
    ),
    *_icml22(),
    *_conservative("icml22_hf"),
    *_conservative("icml22_hf_conservative"),
    Golden("icml22_hf", "target_logit", ExplainedScore()),
    Golden("icml22_hf_conservative", "target_logit", ExplainedScore()),
)


def deviation(golden: Golden, attention: str = "sdpa") -> float:
    """The largest difference as a share of the largest expected value."""
    actual, expected = golden.values(attention)
    return float((actual - expected).abs().max() / expected.abs().max())


def print_table() -> None:
    """Prints case, tensor, what computes it and its largest relative error as a Markdown table."""
    torch.set_num_threads(1)
    rows = [("case", "expected tensor", "computed by", "largest relative error")]
    for golden in GOLDEN:
        attentions = ("sdpa", "eager") if golden.has_implementations else ("sdpa",)
        worst = max(deviation(golden, attention) for attention in attentions)
        label = getattr(golden.compute, "__name__", None) or str(golden.compute)
        rows.append((golden.case, golden.key, label, f"{worst:.1e}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    rows.insert(1, tuple("-" * width for width in widths))
    for row in rows:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")  # noqa: T201


if __name__ == "__main__":
    print_table()
