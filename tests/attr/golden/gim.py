"""GIM, on a language model."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from captum_transformer import GIM, ConservativeLRP, extend
from captum_transformer.rules.gradient.temperature import at_temperature
from tests.attr.golden.attnlrp import PLAIN, language_model, last_logits
from tests.attr.golden.calls import Call, Traced, entered_at_ids_and_embeddings
from tests.attr.golden.cases import Case, load_case, load_stored, loads
from tests.attr.golden.comparison import Golden
from tests.attr.golden.models import from_embeddings

GPT2 = "gim_gpt2"

loads(GPT2, attentions=("sdpa", "eager"))(language_model)


def gradient(case: Case) -> Tensor:
    """Of the embeddings, none of whose values is zero."""
    case = from_embeddings(case)
    relevance = Call(GIM, tokens=False)(case)
    return relevance / case.inputs[:, None]


def against_baseline(case: Case) -> Tensor:
    """Their ``explain``: the gradient times the difference from a token's embedding."""
    model: Any = case.model
    baseline = model.get_input_embeddings()(load_stored(GPT2).inputs["baseline_token_id"])
    vectors = from_embeddings(case).inputs
    return (gradient(case) * (vectors - baseline.detach())[:, None]).sum(-1)


def by_rules(rules: Any) -> Callable[[Case], Tensor]:
    def relevance(case: Case) -> Tensor:
        method = extend.GradientMethod(case.model, rules)
        return case.per_target(lambda target: method.attribute(case.inputs, target))

    return relevance


def written_out(compute: Callable[[Case], Tensor]) -> Callable[[Case], Tensor]:
    """On eager attention, whatever the case was loaded with."""
    return lambda case: compute(load_case(GPT2, "eager"))


def _relevance() -> Iterator[Golden]:
    # Their context manager on fused attention leaves the temperature out.
    temperatures = {"full_T2": 2.0, "full_T4": 4.0, "full_T1": 1.0, "as_it_stands_sdpa": 1.0}
    for name, temperature in temperatures.items():
        for call in entered_at_ids_and_embeddings(GIM, {"temperature": temperature}):
            yield Golden(GPT2, f"relevance.{name}", call)
    for call in entered_at_ids_and_embeddings(ConservativeLRP, PLAIN):
        yield Golden(GPT2, "plain_gradient_x_input", call)
    # And on eager attention the shares of queries, keys and values.
    without_shares = extend.joined(at_temperature(2.0), extend.LN)
    yield Golden(GPT2, "relevance.as_it_stands_eager", written_out(by_rules(without_shares)))
    yield Golden(GPT2, "relevance.freeze_norm_only", by_rules(extend.LN))


GOLDEN = (
    Golden(GPT2, "logits", Traced(last_logits)),
    *_relevance(),
    Golden(GPT2, "gradient.full_T2", gradient),
    Golden(GPT2, "explain_baseline.full_T2", against_baseline),
)
