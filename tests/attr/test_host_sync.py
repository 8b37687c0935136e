"""Nothing waits for the device: no value is read back while a model is explained."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captum_transformer.calling import Arguments
from tests.attr.subjects import FLOW_METHODS, METHODS, SUBJECTS, subject

READS_BACK = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
}
# Without gammas, for which ConservativeLRP looks at the model first.
ONE_FORWARD_PASS = sorted(name for name in METHODS if "gamma" not in name)
# Whether a pass has lost relevance is asked once, at its end: of the one through the operations,
# and of the one from token to token.
RELEVANCE = ("TransformerAttribution", "PartialLRP", "full LRP")


class Reads(TorchDispatchMode):
    """Counts what a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func._schema.name in READS_BACK
        return func(*args, **(kwargs or {}))


def reads(run: Any) -> int:
    with Reads() as counted:
        run()
    return counted.count


def test_reading_back_is_counted() -> None:
    assert reads(lambda: torch.ones(3).sum().item()) == 1
    assert reads(lambda: bool((torch.ones(3) == 1).all())) == 1
    assert reads(lambda: torch.ones(3).sum()) == 0


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("method", ONE_FORWARD_PASS)
def test_only_the_model_reads_back(name: str, method: str) -> None:
    explained = subject(name)
    arguments = Arguments(explained.inputs, explained.extra, explained.named)
    of_the_model = reads(lambda: arguments.call(explained.model, arguments.inputs))
    read = reads(lambda: explained.attribute(METHODS[method]))
    passes = method.startswith(RELEVANCE) + (method in FLOW_METHODS)
    assert read - of_the_model == passes
