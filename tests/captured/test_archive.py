"""Captured calls are saved, and answer in a process that has neither this package nor the model."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    Contrast,
    TransformerAttribution,
    load_captured,
)
from captum_transformer.errors import CaptureMismatchError, InvalidTargetError
from tests.attr.subjects import subject
from tests.captured import other_file
from tests.captured.models import assert_same, classifier, values

# Sums are rounded in another way on another number of threads.
SERVE = """
import sys, torch
torch.set_num_threads(1)
for line in sys.stdin:
    file, arguments, result = line.rstrip().split("|")
    explain = torch.export.load(file).module()
    given = torch.load(arguments)
    torch.save(explain(*given["args"], **given["kwargs"]), result)
    for package in ("captum_transformer", "captum", "timm", "transformers", "tests"):
        assert package not in sys.modules, package
    print("done", flush=True)
"""

Serve: TypeAlias = Callable[..., Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """What files answer in a process of their own, which the package is never imported in."""
    folder = tmp_path_factory.mktemp("elsewhere")  # not the project's: it could be imported there
    with (
        (folder / "said").open("w+") as said,
        subprocess.Popen(
            [sys.executable, "-c", SERVE],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):

        def serve(path: Path, *args: Any, **kwargs: Any) -> Any:
            given, found = path.with_suffix(".in"), path.with_suffix(".out")
            torch.save({"args": args, "kwargs": kwargs}, given)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{path}|{given}|{found}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n", (folder / "said").read_text(
                encoding="utf-8"
            )
            return torch.load(found)

        yield serve


# The graphs of both methods on all models are compared in `test_equal.py`.
@pytest.mark.parametrize(
    ("name", "method"),
    [("timm ViT", TransformerAttribution), ("BERT", AttnLRP), ("timm Swin", AttnLRP)],
)
@pytest.mark.slow
def test_served_without_the_package(method: Any, name: str, tmp_path: Path, served: Serve) -> None:
    explained = subject(name)
    explainer = method(explained.model)
    further = explained.extra or ()
    captured = explainer.capture(explained.inputs, explained.target, further)
    captured.save(tmp_path / "explain.pt2")
    target = torch.tensor([4, 0, 2])
    expected = explainer.attribute(explained.inputs, target, further)
    found = served(tmp_path / "explain.pt2", explained.inputs, target, *further)
    assert_same(found, expected)
    loaded = load_captured(tmp_path / "explain.pt2")
    assert_same(loaded(explained.inputs, [4, 0, 2], further), expected)


@pytest.mark.slow
def test_named_inputs_and_contrasts(tmp_path: Path, served: Serve) -> None:
    model = classifier()
    explainer = AttnLRP(lambda x, scale: model(x * scale))
    captured = explainer.capture(
        {"x": values()}, Contrast(1, 2), additional_forward_kwargs={"scale": torch.ones(())}
    )
    captured.save(tmp_path / "explain.pt2")
    scale = torch.full((), 2.0)
    expected = explainer.attribute(
        {"x": values(1)}, Contrast([0, 1, 2], [4] * 3), additional_forward_kwargs={"scale": scale}
    )
    sides = torch.tensor([0, 1, 2]), torch.tensor([4, 4, 4])
    assert_same(served(tmp_path / "explain.pt2", {"x": values(1)}, sides, scale=scale), expected)
    loaded = load_captured(tmp_path / "explain.pt2")
    found = loaded(
        {"x": values(1)}, Contrast([0, 1, 2], 4), additional_forward_kwargs={"scale": scale}
    )
    assert_same(found, expected)


@pytest.mark.slow
def test_several_targets(tmp_path: Path) -> None:
    explainer = AttnLRP(classifier())
    captured = explainer.capture(values(), [1, 2], of="attribute_targets")
    captured.save(tmp_path / "explain.pt2")
    loaded = load_captured(tmp_path / "explain.pt2")
    targets = [[4] * 3, [0, 1, 2]]
    assert_same(loaded(values(1), targets), explainer.attribute_targets(values(1), targets))
    with pytest.raises(CaptureMismatchError, match="targets"):
        loaded(values(1), [1])
    with pytest.raises(CaptureMismatchError, match="tensors"):
        loaded(values(1, samples=2), [1, 2])


@pytest.mark.slow
def test_weights_are_saved_as_they_are_and_have_the_models_names(tmp_path: Path) -> None:
    model = classifier()
    explainer = AttnLRP(model)
    captured = explainer.capture(values(), 1)
    with torch.no_grad():
        model.head.weight.mul_(2)
    captured.save(tmp_path / "explain.pt2")
    assert_same(
        load_captured(tmp_path / "explain.pt2")(values(1), 2),
        explainer.attribute(values(1), [2] * 3),
    )
    names = torch.export.load(tmp_path / "explain.pt2").state_dict
    assert "model.blocks.0.out.weight" in names
    model.head = nn.Linear(16, 5)
    with pytest.raises(CaptureMismatchError):
        captured.save(tmp_path / "explain.pt2")


class Rack(nn.Module):
    """Its weights have names that modules can't have, or that are the beginning of another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()
        self.held = SimpleNamespace(
            type=torch.tensor(2.0), train=torch.tensor(3.0), w={".a": torch.tensor(4.0)}
        )
        self.held.w["."] = self.held.w[".a.b"] = torch.tensor(5.0)

    def forward(self, x: Tensor) -> Tensor:
        held = self.held
        scale = held.type / held.train * held.w[".a"] * held.w[".a.b"]
        return self.inner(other_file.LAYERS[1](other_file.LAYERS[0](x) * scale))


@pytest.mark.slow
def test_names_of_weights_that_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_file, "LAYERS", [nn.Linear(8, 8), nn.Linear(8, 8)], raising=False)
    method = AttnLRP(Rack())
    captured = method.capture(values(), 1)
    captured.save(tmp_path / "explain.pt2")
    found = load_captured(tmp_path / "explain.pt2")(values(1), 2)
    assert_same(found, method.attribute(values(1), [2] * 3))


@pytest.mark.slow
def test_targets_that_do_not_fit_a_file(tmp_path: Path) -> None:
    model = classifier()
    method = AttnLRP(lambda x: model(x)[..., None])
    captured = method.capture(values(), (1, 0))
    captured.save(tmp_path / "explain.pt2")
    program = torch.export.load(tmp_path / "explain.pt2").module()
    for index in (5, -6):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            program(values(1), torch.tensor([[1, 0], [index, 0], [2, 0]]))
    loaded = load_captured(tmp_path / "explain.pt2")
    for target in ((5, 0), (-6, 0), (1, 1), [(1, 0), (2, 0), (7, 0)]):
        with pytest.raises(InvalidTargetError, match=r"of shape \(5, 1\) for each sample"):
            loaded(values(1), target)


@pytest.mark.slow
def test_where_a_check_fails_it_is_named(tmp_path: Path) -> None:
    from tests.captured.test_refusals import MixesIfLarge

    explainer = AttnLRP(MixesIfLarge())
    captured = explainer.capture(values(), 1, (torch.zeros(3, 3),))
    captured.save(tmp_path / "explain.pt2")
    loaded = load_captured(tmp_path / "explain.pt2")
    assert loaded(values(1), 2, (torch.zeros(3, 3),)).isfinite().all()
    with pytest.raises(CaptureMismatchError, match="in this: whether samples influence each other"):
        loaded(values(1), 2, (torch.ones(3, 3),))


@pytest.mark.slow
def test_a_file_says_which_check_failed_also_without_the_package(tmp_path: Path) -> None:
    from tests.captured.test_refusals import MixesIfLarge, ReadsMask

    explainer = AttnLRP(MixesIfLarge())
    explainer.capture(values(), 1, (torch.zeros(3, 3),)).save(tmp_path / "explain.pt2")
    extra = {"captum_transformer.json": ""}
    program = torch.export.load(tmp_path / "explain.pt2", extra_files=extra).module()
    (name,) = json.loads(extra["captum_transformer.json"])["checks"]
    assert name == "whether samples influence each other"
    for share, fails in ((torch.ones(3, 3), True), (torch.zeros(3, 3), False)):
        found = program(values(1), torch.tensor([2, 2, 2]), share)
        assert found.isnan().all() == fails
        assert program.checks.tolist() == [not fails]
    assert bytes([0, 1]) == b"".join([bytes([0]), bytes([1])])  # not written over
    mask = torch.ones(3, 6, dtype=torch.bool)
    AttnLRP(ReadsMask()).capture(values(), 1, (mask,)).save(tmp_path / "explain.pt2")
    with pytest.raises(CaptureMismatchError, match=r"which was True, at .*if not mask\.all\(\)"):
        load_captured(tmp_path / "explain.pt2")(values(1), 2, (~mask,))


def test_nan_in_a_score_is_no_failed_check(tmp_path: Path) -> None:
    explainer = AttnLRP(classifier())
    explainer.capture(values(), 1).save(tmp_path / "explain.pt2")
    loaded = load_captured(tmp_path / "explain.pt2")
    assert loaded(torch.full((3, 6, 8), torch.nan), 2).isnan().all()


@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode,
        torch.enable_grad,
        lambda: torch.device("meta"),
    ],
)
def test_a_file_computes_what_was_captured_in_any_mode(mode: Any, tmp_path: Path) -> None:
    # It rounds differently in bfloat16, and raises no error there.
    captured = ConservativeLRP(classifier()).capture(values(), 1)
    captured.save(tmp_path / "explain.pt2")
    loaded, x, expected = load_captured(tmp_path / "explain.pt2"), values(1), captured(values(1), 2)
    with mode():
        found = loaded(x, 2)
    assert_same(found, expected)
    assert not found.is_inference()
    assert not found.requires_grad


def test_other_programs_are_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(CaptureMismatchError, match=r"Captured\.save"):
        load_captured(tmp_path / "other.pt2")


@pytest.mark.parametrize("name", ["explain.pt2", "explain.onnx"])
@pytest.mark.parametrize("content", [b"", b"no archive", torch.ones(2)])
def test_other_files_are_refused(content: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CaptureMismatchError, match=rf"{name} was not written by `Captured\.save`"):
        load_captured(path)
