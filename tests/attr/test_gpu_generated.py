"""Generated tokens on a device that is not the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.attr.language_models import (
    DECODERS,
    ENCODER_DECODERS,
    NEW,
    further,
    generated_by,
    prompt,
)
from tests.attr.subjects import METHODS, assert_close

pytestmark = pytest.mark.gpu


def explained(name: str, method: str, device: torch.device) -> Tensor:
    model = (DECODERS | ENCODER_DECODERS)[name]().to(device)
    ids, mask = (tensor.to(device) for tensor in prompt())
    generated = generated_by(model, ids, mask)
    explain = METHODS[method](model)
    if name in DECODERS:
        whole = further(model, F.pad(mask, (0, NEW), value=1))
        return explain.attribute_generated(ids, generated, additional_forward_kwargs=whole)
    result = explain.attribute_generated(
        {"input_ids": ids},
        generated,
        generated_as="decoder_input_ids",
        additional_forward_kwargs={"attention_mask": mask},
    )
    return result["input_ids"]


@pytest.mark.parametrize("method", ["GenericAttentionRelevance", "AttnLRP", "ConservativeLRP"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_maps_are_those_of_the_cpu(name: str, method: str, device: torch.device) -> None:
    result = explained(name, method, device)

    assert result.device == device
    assert_close(result.cpu(), explained(name, method, torch.device("cpu")), 1e-6)
