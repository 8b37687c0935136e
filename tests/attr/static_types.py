"""For mypy alone, which reads this file and never runs it: results have the form of the inputs."""

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import assert_type

from captum_transformer import ConservativeLRP, Contrast, GenericAttentionRelevance


def check_every_method(
    explain: GenericAttentionRelevance, x: Tensor, enc: Mapping[str, Tensor]
) -> None:
    named = {"input_ids": x, "pixel_values": x}
    assert_type(explain.attribute(x, 3), Tensor)
    assert_type(explain.attribute((x, x), [1, 2]), tuple[Tensor, ...])
    assert_type(explain.attribute(named, Contrast((1, 2), x)), dict[str, Tensor])
    assert_type(explain.attribute(enc, target=x), Mapping[str, Tensor])
    assert_type(explain.attribute_tokens({"input_ids": x}), dict[str, Tensor])
    assert_type(explain.attribute_targets(x, [1, (1, 2), Contrast(1, 2)]), list[Tensor])
    assert_type(
        explain.attribute(x, 1, additional_forward_kwargs={"mask": x, "use_cache": False}), Tensor
    )
    assert_type(explain.attribute_generated(named, x, generated_as="labels"), dict[str, Tensor])
    assert_type(explain.attribute_generated(x, x, rather_than=3), Tensor)
    maps = explain.relevance_maps(enc, 1, additional_forward_kwargs={"mask": x})
    assert_type(maps, dict[tuple[str, str], Tensor])


def check_the_convergence_delta(explain: ConservativeLRP, x: Tensor) -> None:
    assert_type(explain.attribute(x, 1), Tensor)
    assert_type(explain.attribute((x,), 1, return_convergence_delta=False), tuple[Tensor, ...])
    named, delta = explain.attribute({"input_ids": x}, 1, return_convergence_delta=True)
    assert_type(named, dict[str, Tensor])
    assert_type(delta, Tensor)
    assert_type(explain.compute_convergence_delta(named, x), Tensor)
