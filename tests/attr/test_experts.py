"""Mixtures of experts, by the kernels that Transformers runs them with."""

from functools import cache

import pytest
import torch
import transformers

from tests.attr import subjects
from tests.attr.generators import GROUPED, continuing
from tests.attr.kinds_of_attention import difference
from tests.attr.subjects import Subject, as_tuple

EXPERTS = {"num_experts_per_tok": 2, "attn_implementation": "eager"}
MODELS = {
    "Mixtral": ("Mixtral", {"num_local_experts": 4}),
    "Qwen3": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16}),
    "GPT-OSS": ("GptOss", {"num_local_experts": 4, "sliding_window": 4}),
}
METHODS = {name: method for name, method in subjects.METHODS.items() if "," not in name}
KERNELS = ("grouped_mm", "batched_mm")

pytestmark = pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, "get_correct_experts_implementation"),
    reason="this version of Transformers has only the loop over experts",
)


@cache
def subject(name: str, kernel: str) -> Subject:
    """In float32: the grouped kernel has no float64."""
    prefix, options = MODELS[name]
    config = getattr(transformers, f"{prefix}Config")(
        **GROUPED, **EXPERTS, **options, experts_implementation=kernel
    )
    return continuing(getattr(transformers, f"{prefix}ForCausalLM")(config)).to(torch.float32)


@cache
def attributed(name: str, kernel: str, method: str) -> tuple[torch.Tensor, ...]:
    """What a method says of a batch; computed once for both tests."""
    return as_tuple(subject(name, kernel).attribute(METHODS[method]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_kernels_for_experts_give_what_the_loop_gives(name, kernel, method):
    loop = attributed(name, "eager", method)
    assert difference(attributed(name, kernel, method), loop) < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kernel", ["eager", "grouped_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_texts_is_its_texts_one_by_one(name, kernel, method):
    together = attributed(name, kernel, method)
    for i in (0, 2):
        alone = as_tuple(subject(name, kernel).samples([i]).attribute(METHODS[method]))
        assert difference(tuple(a[[i]] for a in together), alone) < 1e-3
