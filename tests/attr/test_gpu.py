"""The methods on a device that is not the CPU."""

import gc
import time
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from captum_transformer.calling import Arguments
from tests.accelerator.waits import waits
from tests.attr.generators import bart, detr, gpt2, llama, mixtral, t5, whisper
from tests.attr.subjects import (
    EACH_WAY,
    FLOW_METHODS,
    METHODS,
    SUBJECTS,
    Subject,
    as_tuple,
    assert_close,
    attributed,
    shared_out,
    subject,
)
from tests.attr.two_modalities import blip_matching, lxmert, vilt

pytestmark = pytest.mark.gpu

# Whether a pass has lost relevance is asked once, at its end: of the one through the operations,
# and of the one from token to token.
RELEVANCE = ("TransformerAttribution", "PartialLRP", "full LRP")
FULLY = ("timm ViT", "timm Swin", "BERT")
SOME = ("TransformerAttribution", "GenericAttentionRelevance", "AttnLRP")
CROSS_ATTENTION = {
    "DETR": partial(detr, "sdpa"),
    "T5": partial(t5, "sdpa"),
    "BART": partial(bart, "sdpa"),
    "Whisper": partial(whisper, "sdpa"),
    "LXMERT": partial(lxmert, "eager"),
    "BLIP": partial(blip_matching, "eager"),
}
OTHERS = {
    "ViLT": partial(vilt, "eager"),
    "GPT-2": partial(gpt2, "sdpa"),
    "Llama": partial(llama, "sdpa"),
    "Mixtral": partial(mixtral, "eager"),
}
# They pick tokens by indices that they compute: which sample is where is read from these.
COMPUTED = ("GPT-2 classifier", "ViLT")


class Noise(nn.Module):
    """Draws random numbers on the device."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + 0.1 * torch.randn_like(tokens)


@cache
def of_the_model(make: Callable[[], Subject], device: torch.device) -> int:
    """How often a model waits for the device by itself."""
    given = make().to(device)
    arguments = Arguments(given.inputs, given.extra, given.named)
    with waits(device) as found:
        arguments.call(given.model, arguments.inputs)
    return found.total()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *shared_out(FULLY),
        *((name, method) for name in SUBJECTS if name not in FULLY for method in SOME),
    ],
)
def test_maps_are_those_of_the_cpu(name: str, method: str, device: torch.device) -> None:
    make = partial(subject, name)
    given = make().to(device)

    with waits(device) as found:
        result = as_tuple(given.attribute(METHODS[method]))

    assert all(attribution.device == device for attribution in result)
    assert_close(tuple(a.cpu() for a in result), attributed(name, method), 1e-6)
    if "gamma" not in method:  # they look at the model first
        passes = method.startswith(RELEVANCE) + (method in FLOW_METHODS)
        computed = f"{name} classifier" in COMPUTED
        assert found.total() == of_the_model(make, device) + passes + computed


@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "AttnLRP"])
@pytest.mark.parametrize("name", CROSS_ATTENTION | OTHERS)
def test_decoders_and_cross_attention(name: str, method: str, device: torch.device) -> None:
    make = (CROSS_ATTENTION | OTHERS)[name]
    expected = make().attribute(METHODS[method])
    given = make().to(device)

    with waits(device) as found:
        result = given.attribute(METHODS[method])

    assert result.keys() == expected.keys()
    for key, relevance in result.items():
        assert relevance.device == device
        assert_close(relevance.cpu(), expected[key], 1e-6)
    if name != "Mixtral":  # it asks for the tokens of each expert
        # With cross-attention, whether tokens have stayed in place is asked in the same breath.
        asked = (method in FLOW_METHODS) + (name in COMPUTED)
        assert found.total() == of_the_model(make, device) + asked


@pytest.mark.parametrize(("name", "method"), shared_out(["timm ViT", "BERT"]))
def test_autocast_stays_finite(name: str, method: str, device: torch.device) -> None:
    dtype = torch.float16 if name == "timm ViT" else torch.bfloat16
    given = subject(name).to(torch.float32).to(device)

    with torch.autocast(device.type, dtype):
        (result,) = as_tuple(given.attribute(METHODS[method]))

    assert result.device == device
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert result.any()


@pytest.mark.parametrize("method", EACH_WAY)
def test_random_state_of_the_device_stays(method: str, device: torch.device) -> None:
    given = subject("timm ViT").to(device)
    given.model.train()
    given.model.patch_drop = Noise()
    backend = torch.get_device_module(device)
    before = backend.get_rng_state()

    given.attribute(METHODS[method])

    assert torch.equal(backend.get_rng_state(), before)


@pytest.mark.parametrize("method", EACH_WAY)
def test_target_may_be_on_another_device(method: str, device: torch.device) -> None:
    given = subject("timm ViT").to(device)
    result = given.attribute(METHODS[method], target=torch.tensor(given.target))

    assert_close(result.cpu(), attributed("timm ViT", method), 1e-6)


# Gamma looks at the model first.
@pytest.mark.parametrize("method", [*EACH_WAY, "AttnLRP, gamma"])
def test_memory_does_not_grow(method: str, device: torch.device) -> None:
    given = subject("timm ViT").to(device)
    backend = torch.get_device_module(device)

    gc.disable()
    try:
        for _ in range(2):
            given.attribute(METHODS[method])
        before = backend.memory_allocated()
        for _ in range(6):
            given.attribute(METHODS[method])
        # Autograd's thread of the device lets go of its last tensors a little later.
        end = time.monotonic() + 10
        while backend.memory_allocated() > before and time.monotonic() < end:
            time.sleep(0.01)
        assert backend.memory_allocated() <= before
    finally:
        gc.enable()
