"""Captured calls are compiled."""

import shutil
from pathlib import Path

import pytest
import torch

from captum_transformer import AttnLRP
from tests.captured.models import classifier, values

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)


@needs_compiler
@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    model = classifier(blocks=2)
    method = AttnLRP(model)
    captured = method.capture(values(), 1).compile()
    for seed in range(1, 3):
        expected = method.attribute(values(seed), 2)
        torch.testing.assert_close(captured(values(seed), 2), expected)
        with torch.no_grad():
            model.head.weight.mul_(2)


@needs_compiler
@pytest.mark.slow
def test_compiled_ahead_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = AttnLRP(classifier())
    method.capture(values(), 1).save(tmp_path / "explain.pt2")
    program = torch.export.load(tmp_path / "explain.pt2")
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "explain_aot.pt2")
    )
    explain = torch._inductor.aoti_load_package(package)
    found = explain(values(1), torch.tensor([2, 0, 4]))
    torch.testing.assert_close(found, method.attribute(values(1), [2, 0, 4]))
    # As the documentation says of arguments of other forms; the first call of a library decides.
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    explain = torch._inductor.aoti_load_package(package)
    in_another_order = values(1).transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(RuntimeError, match="stride"):
        explain(in_another_order, torch.tensor([2, 0, 4]))
    with pytest.raises(RuntimeError, match="dim"):
        explain(values(1, samples=6), torch.tensor([2, 0, 4] * 2))
    torch.testing.assert_close(explain(values(1), torch.tensor([2, 0, 4])), found)
