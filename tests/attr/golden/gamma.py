"""AttnLRP with LRP-gamma, on a vision Transformer: a composite of rules."""

from collections.abc import Callable, Iterator

import torchvision
from torch import Tensor

from captum_transformer import ConservativeLRP, extend
from tests.attr.golden.attnlrp import PLAIN
from tests.attr.golden.calls import Call, Traced, logits
from tests.attr.golden.cases import Case, Stored, loads
from tests.attr.golden.comparison import Golden

VIT = "attnlrp_lxt_vit_gamma"
# The reference stabilises its quotients: 1e-6 in a layer's denominator, 1e-10 where it divides by a
# value. Its own formula without that differs by as much; without a gamma a layer divides by outputs
# that may all but vanish.
STABILISED, WITHOUT = 1e-5, 5e-4
SETTINGS = {(0.25, 0.05): STABILISED, (100.0, 0.05): STABILISED, (0.25, 0.0): WITHOUT}


@loads(VIT)
def vision_transformer(stored: Stored, attention: str) -> Case:
    model = torchvision.models.VisionTransformer(**stored.manifest["kwargs"])
    model.load_state_dict(stored.state)
    images = stored.inputs["images"]
    return Case(model.double().eval(), images, stored.targets(), stored.expected)


def is_convolution(operation: extend.Operation) -> bool:
    return operation.kind is extend.Kind.CONV


def is_of_mlp_or_head(operation: extend.Operation) -> bool:
    return ".mlp." in operation.module or operation.module.startswith("heads.")


def composite(conv: float, linear: float) -> Callable[[Case], Tensor]:
    def relevance(case: Case) -> Tensor:
        rules = extend.joined(
            extend.gamma(conv, where=is_convolution),
            extend.gamma(linear, where=is_of_mlp_or_head),
            *(extend.AH, extend.IDENTITY, extend.LN),
        )
        method = extend.GradientMethod(case.model, rules)
        return case.per_target(lambda target: method.attribute(case.inputs, target))

    return relevance


def _relevance() -> Iterator[Golden]:
    for (conv, linear), tolerance in SETTINGS.items():
        key = f"relevance.conv{conv:g}_lin{linear:g}"
        yield Golden(VIT, key, composite(conv, linear), tolerance)


GOLDEN = (
    Golden(VIT, "logits", Traced(logits)),
    *_relevance(),
    Golden(VIT, "plain_gradient_x_input", Call(ConservativeLRP, PLAIN, tokens=False)),
)
