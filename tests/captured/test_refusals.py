"""What a graph can't do again is refused when it is captured, with the line of the model."""

import functools
import gc
import heapq
import itertools
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.utils.import_utils import is_tracing

from captum_transformer import AttnLRP, ConservativeLRP, TransformerAttribution
from captum_transformer.errors import CaptureError, CaptureMismatchError, MixedSamplesError
from captum_transformer.rules import ledger
from tests.captured.models import Block, assert_never_stale, assert_same, classifier, values


class Branches(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = 2 * x
        return super().forward(x)


class ReadsItem(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.detach().abs().max().item()


class ReadsList(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x[0, 0, :1].detach().tolist()[0]


class ReadsArray(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(x.detach().numpy().max())


class ReadsWeights(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.out.weight.sum() > -1e9 else x


class PicksByMask(Block):
    def forward(self, x: Tensor) -> Tensor:
        mask = x.detach()[..., 0] > 0
        return super().forward(x) + x.detach()[mask].sum()


class FindsEntries(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * len((x.detach() > 0).nonzero())


class DrawsNoise(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x)


class ReadsWithinPython(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * heapq.nlargest(1, x.detach()[0, 0])[0]


class DrawsInPython(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random()


class DrawsInNumPy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(np.random.rand())  # noqa: NPY002


@functools.cache
def _hidden() -> Tensor:
    return torch.ones(16)


class UsesHidden(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * _hidden()


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (Branches, "if x.sum() > 0"),
        (ReadsItem, ".item()"),
        (ReadsList, ".tolist()"),
        (ReadsArray, ".numpy()"),
        (ReadsWeights, "self.out.weight.sum()"),
        (PicksByMask, "[mask]"),
        (FindsEntries, ".nonzero()"),
        (DrawsNoise, "torch.rand_like"),
        (ReadsWithinPython, "heapq.nlargest"),
        (DrawsInPython, "random.random()"),
        (DrawsInNumPy, "return super().forward(x) * float(np.random.rand())"),
    ],
)
def test_the_line_is_named(block: Any, line: str) -> None:
    with pytest.raises(CaptureError) as error:
        AttnLRP(classifier(block)).capture(values(), 1)
    assert __file__ in str(error.value)
    assert line in str(error.value)


class _Cycle:
    """Garbage, whose end draws random numbers, and reads numbers of the model."""

    ended = 0

    def __init__(self, weight: Tensor) -> None:
        self.own, self.weight = self, weight

    def __del__(self) -> None:
        type(self).ended += 1
        random.random()
        self.weight.sum().item()


class MakesGarbage(Block):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20):
            _Cycle(self.out.weight)
        return super().forward(x)


def test_garbage_is_not_the_model() -> None:
    method = AttnLRP(classifier(MakesGarbage))
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        captured = method.capture(values(), 1)
        assert gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert _Cycle.ended
    assert_same(captured(values(1), 2), method.attribute(values(1), [2] * 3))


class ImportsLate(Block):
    def forward(self, x: Tensor) -> Tensor:
        import captum_transformer_test_drawn_once

        return super().forward(x) * captum_transformer_test_drawn_once.FACTOR


def test_what_an_import_draws_is_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "captum_transformer_test_drawn_once"
    code = "import random\n\nFACTOR = random.random()\n"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    method = AttnLRP(classifier(ImportsLate))
    try:
        captured = method.capture(values(), 1)
        assert_same(captured(values(1), 2), method.attribute(values(1), [2] * 3))
        sys.modules[name].FACTOR = 3.0
        assert assert_never_stale(method, captured, values(1), 2)
    finally:
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore")
def test_kernels_that_torch_can_not_record() -> None:
    model = torch.ao.quantization.quantize_dynamic(classifier(), {nn.Linear})
    method = AttnLRP(model)
    method.attribute(values(), 1)
    with pytest.raises(CaptureError, match=r"can't record .*Could not run 'aten::empty_strided'"):
        method.capture(values(), 1)


def test_tensors_that_nobody_is_known_to_hold() -> None:
    with pytest.raises(CaptureError, match="neither"):
        AttnLRP(classifier(UsesHidden)).capture(values(), 1)


class Counts(Block):
    """Keeps what it has seen, in a buffer and in Python, and computes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.kept = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        self.kept = x.detach()
        return super().forward(x) * self.seen * self.calls + self.kept.mean()


@pytest.mark.parametrize("method", [AttnLRP, TransformerAttribution])
def test_state_that_a_model_writes(method: Any) -> None:
    model = classifier(Counts)
    explainer = method(model)
    captured = explainer.capture(values(), 1)
    for seed in range(1, 4):
        assert_same(captured(values(seed), 2), explainer.attribute(values(seed), [2] * 3))
        assert model.blocks[0].seen == 0
        assert model.blocks[0].kept is None
    model.blocks[0].seen.fill_(2)
    assert not assert_never_stale(explainer, captured, values(1), 2)
    model.blocks[0].calls = 2
    assert assert_never_stale(explainer, captured, values(1), 2)


class ReadsMask(nn.Module):
    """Leaves a mask out that masks nothing, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not mask.all():
            x = x * mask[..., None]
        return self.inner(x)


def test_what_a_model_reads_of_further_arguments_has_to_stay() -> None:
    method = AttnLRP(ReadsMask())
    whole, part = torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    part[1, 4:] = False
    captured = method.capture(values(), 1, (whole,))
    again = method.capture(values(), 1, (whole,), recapture=True)
    for mask in (whole, part, whole):
        expected = method.attribute(values(1), [2] * 3, (mask,))
        assert_same(again(values(1), 2, (mask,)), expected)
        if mask is whole:
            assert_same(captured(values(1), 2, (mask,)), expected)
            continue
        with pytest.raises(CaptureMismatchError, match=r"if not mask\.all\(\)"):
            captured(values(1), 2, (mask,))


class MixesIfLarge(nn.Module):
    """Samples influence each other, by as much as an argument says."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        others = torch.einsum("bn,nc->bc", share, x.flatten(1)).view(x.shape)
        return self.inner(x + others)


@pytest.mark.parametrize("method", [AttnLRP, ConservativeLRP, TransformerAttribution])
def test_checks_of_values_are_made_in_each_call(method: Any) -> None:
    explainer = method(MixesIfLarge())
    apart, mixed = torch.zeros(3, 3), torch.ones(3, 3)
    try:
        captured = explainer.capture(values(), 1, (apart,))
    except (MixedSamplesError, NotImplementedError):
        pytest.skip("refused whatever the share is")
    assert_same(captured(values(1), 2, (apart,)), explainer.attribute(values(1), [2] * 3, (apart,)))
    with pytest.raises(MixedSamplesError):
        explainer.attribute(values(1), [2] * 3, (mixed,))
    with pytest.raises(MixedSamplesError):
        captured(values(1), 2, (mixed,))


def test_a_call_whose_sums_are_compared_for_each_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "ROUNDING", -1.0)
    explainer = TransformerAttribution(classifier())
    assert explainer.attribute(values(), 1).isfinite().all()
    with pytest.raises(CaptureError, match="compares the sums of each operation for this call"):
        explainer.capture(values(), 1)


@pytest.mark.parametrize("method", [AttnLRP, TransformerAttribution])
def test_nan_stays_nan(method: Any) -> None:
    explainer = method(classifier())
    captured = explainer.capture(values(), 1)
    x = values(1)
    x[1, 2, 3] = torch.nan
    found = captured(x, 2)
    assert_same(found, explainer.attribute(x, [2] * 3))
    assert found[1].isnan().all()
    assert found[0].isfinite().all()


class WritesThroughAView(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.zeros(16))
        self.register_buffer("part", self.whole[:1])

    def forward(self, x: Tensor) -> Tensor:
        self.whole.add_(1.0)
        return super().forward(x * self.part)


def test_tensors_that_share_memory_if_one_is_written_into(tmp_path: Path) -> None:
    method = AttnLRP(classifier(WritesThroughAView))
    captured = method.capture(values(), 1)
    assert_same(captured(values(1), 2), method.attribute(values(1), [2] * 3))
    with pytest.raises(CaptureError, match="shares memory"):
        captured.compile()
    with pytest.raises(CaptureError, match="shares memory"):
        captured.save(tmp_path / "explain.pt2")


@pytest.mark.parametrize("generator", [np.random.default_rng(0), np.random.RandomState(0)])
def test_generators_of_numpy(generator: Any) -> None:
    class Draws(Block):
        def __init__(self) -> None:
            super().__init__()
            self.generator = generator

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.generator.uniform() < 2 else x

    with pytest.raises(CaptureError, match=r"blocks\.0\.generator"):
        AttnLRP(classifier(Draws)).capture(values(), 1)


@pytest.mark.parametrize(
    "make", [itertools.count, lambda: iter(range(99)), lambda: (n for n in range(99))]
)
def test_iterators(make: Any) -> None:
    class Counts(Block):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = make()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * (2 if next(self.numbers) > 9 else 1))

    with pytest.raises(CaptureError, match=r"blocks\.0\.numbers is an iterator"):
        AttnLRP(classifier(Counts)).capture(values(), 1)


# What models ask in order to avoid what can't be traced.
_QUESTIONS = {
    "fx": torch.fx._symbolic_trace.is_fx_tracing,
    "symbolic": torch.fx._symbolic_trace.is_fx_symbolic_tracing,
    "compiling": torch.compiler.is_compiling,
    "exporting": torch.compiler.is_exporting,
    "scripting": torch.jit.is_scripting,
    "tracing": torch.jit.is_tracing,
    "ONNX": torch.onnx.is_in_onnx_export,
    "Transformers": is_tracing,
}


@pytest.mark.parametrize("question", _QUESTIONS)
def test_a_model_that_asks_whether_it_is_traced_branches_as_in_other_calls(question: str) -> None:
    class Asks(Block):
        def forward(self, x: Tensor) -> Tensor:
            if not _QUESTIONS[question]() and x.sum() > 0:
                x = 2 * x
            return super().forward(x)

    with pytest.raises(CaptureError, match=r"x\.sum\(\) > 0"):
        AttnLRP(classifier(Asks)).capture(values(), 1)


def test_further_arguments_that_may_hold_anything() -> None:
    class Options:
        scale = torch.ones(())

    model = classifier()
    method = AttnLRP(lambda x, options: model(x * options.scale))
    with pytest.raises(CaptureError, match=r"additional_forward_args\[0\] is a Options"):
        method.capture(values(), 1, (Options(),))
