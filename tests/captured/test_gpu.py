"""The code that a captured call depends on, on a device whose backward pass has its own threads."""

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_transformer import AttnLRP
from captum_transformer.captured.executed import Executed
from tests.captured.models import Block, classifier, values

pytestmark = pytest.mark.gpu


def as_it_is(gradient: Tensor) -> Tensor:
    return gradient


class Hooked(Block):
    def __init__(self) -> None:
        super().__init__()
        del self.offset
        self.register_buffer("offset", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x.register_hook(as_it_is)
        return super().forward(x)


def test_code_that_only_the_backward_pass_runs_is_seen(device: torch.device) -> None:
    model: Any = classifier(Hooked).to(device)
    method, x, executed = AttnLRP(model), values().to(device), Executed()
    with executed.noted():
        method.attribute(x, 1)
    assert as_it_is.__code__ in [code for code, _ in executed.codes.values()]
