"""Whatever changes after a call was captured is followed or refused, and never answered stale."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from captum_transformer import AttnLRP, ConservativeLRP, TransformerAttribution, load_captured
from captum_transformer.errors import CaptureError, CaptureMismatchError, InvalidTargetError
from tests.captured.models import (
    Block,
    Classifier,
    assert_never_stale,
    assert_same,
    classifier,
    values,
)


def _double(_: Any, __: Any, output: Tensor) -> Tensor:
    return 2 * output


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _set_block_forward(model: Any) -> None:
    block = model.blocks[0]
    block.forward = lambda x: type(block).forward(block, 2 * x)


def _tie(model: Any) -> None:
    model.blocks[1].out.weight = model.blocks[0].out.weight


REFUSED: dict[str, Callable[[Any], Any]] = {
    "another submodule": lambda m: setattr(m.blocks[0], "out", nn.Linear(16, 16)),
    "another activation": lambda m: m.blocks[0].mlp.__setitem__(1, nn.ReLU()),
    "one block less": lambda m: m.blocks.pop(1),
    "a block twice": lambda m: m.blocks.append(m.blocks[0]),
    "another number": lambda m: setattr(m.blocks[0], "scale", 0.5),
    "another number in a dict": lambda m: m.blocks[0].options.update(shift=2.0),
    "another epsilon": lambda m: setattr(m.blocks[0].norm, "eps", 0.1),
    "a hook": lambda m: m.blocks[0].register_forward_hook(_double),
    "a hook without a handle": lambda m: m.blocks[0].mlp[2]._forward_hooks.update({7: _double}),
    "other hooks": lambda m: setattr(m.head, "_forward_hooks", OrderedDict({7: _double})),
    "a pre-hook": lambda m: m.blocks[0].register_forward_pre_hook(lambda _, x: (2 * x[0],)),
    "a forward of its own": _set_block_forward,
    "a parametrisation": lambda m: parametrize.register_parametrization(m.head, "weight", _Twice()),
    "spectral norm": lambda m: nn.utils.parametrizations.spectral_norm(m.head),
    "no bias": lambda m: setattr(m.head, "bias", None),
    "another dtype": lambda m: m.double(),
    "a frozen parameter": lambda m: m.head.weight.requires_grad_(requires_grad=False),
    "another dropout": lambda m: setattr(m.blocks[0].mlp[2], "p", 0.9),
    "tied weights": _tie,
    "more classes": lambda m: (
        m.head.register_parameter("weight", nn.Parameter(torch.ones(6, 16)))
        or m.head.register_parameter("bias", nn.Parameter(torch.ones(6)))
    ),
}
FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: None,
    "in training mode": lambda m: m.train(),
    "weights in place": lambda m: m.head.weight.data.mul_(2),
    "weights' data": lambda m: setattr(m.head.weight, "data", torch.ones(5, 16)),
    "a new parameter": lambda m: setattr(m.head, "weight", nn.Parameter(torch.ones(5, 16))),
    "a state dict": lambda m: m.load_state_dict(classifier(seed=1, blocks=2).state_dict()),
    "an assigned state dict": lambda m: m.load_state_dict(
        classifier(seed=1, blocks=2).state_dict(), assign=True
    ),
    "a new buffer": lambda m: setattr(m.blocks[0], "bias", torch.ones(16)),
    "a buffer in place": lambda m: m.blocks[0].bias.add_(1),
    "a new tensor": lambda m: setattr(m.blocks[0], "offset", torch.ones(16)),
    "a tensor in place": lambda m: m.blocks[0].offset.add_(1),
    "an attribute that nothing reads": lambda m: setattr(m, "epoch_of_training", 3),
    "gradients": lambda m: m(values()).sum().backward(),
    "a backward hook": lambda m: m.register_full_backward_hook(lambda *_: None),
}


@contextmanager
def changed(model: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Changes a model, and undoes it on exit: all has the objects and numbers that it had."""
    modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
    held = [value for *_, entries in modules for value in entries.values()]
    dicts = [(one, dict(one)) for one in held if isinstance(one, dict)]
    tensors = [*model.parameters(), *model.buffers(), *(t for t in held if isinstance(t, Tensor))]
    numbers = [(t, t.data, t.data.clone(), t.requires_grad) for t in tensors]
    change(model)
    try:
        yield
    finally:
        for module, kind, entries in modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(entries)
        for one, entries in dicts:
            one.clear()
            one.update(entries)
        for tensor, data, before, requires_grad in numbers:
            tensor.data = data.copy_(before)
            tensor.requires_grad_(requires_grad)
            tensor.grad = None


@pytest.fixture(scope="module")
def explainer(request: pytest.FixtureRequest) -> Any:
    return getattr(request, "param", AttnLRP)(classifier(blocks=2))


@pytest.fixture(scope="module")
def captured(explainer: Any) -> Any:
    return explainer.capture(values(), 1)


@pytest.fixture(scope="module")
def again(explainer: Any) -> Any:
    return explainer.capture(values(), 1, recapture=True)


@pytest.mark.parametrize("change", REFUSED)
def test_what_can_not_be_followed_is_refused(explainer: Any, captured: Any, change: str) -> None:
    model = explainer.forward_func
    with changed(model, REFUSED[change]):
        x = values(1).to(model.head.weight.dtype)
        with pytest.raises(CaptureMismatchError):
            captured(x, 2)
    # It was for the change.
    assert not assert_never_stale(explainer, captured, values(1), 2)


@pytest.mark.parametrize("first", ["an attribute that nothing reads", "a new parameter"])
@pytest.mark.parametrize("change", ["a hook without a handle", "another number", "no bias"])
def test_a_change_after_one_that_is_followed_is_refused(
    explainer: Any, captured: Any, first: str, change: str
) -> None:
    model = explainer.forward_func
    with changed(model, FOLLOWED[first]):
        for seed in (1, 2):
            assert not assert_never_stale(explainer, captured, values(seed), 2)
        with changed(model, REFUSED[change]), pytest.raises(CaptureMismatchError):
            captured(values(1), 2)


def _in_many_ways(model: Any) -> None:
    for name, change in REFUSED.items():
        if name not in ("a frozen parameter", "more classes"):  # not once it is parametrised
            change(model)


@pytest.mark.parametrize(
    "change", [*map(REFUSED.get, ("one block less", "a hook", "more classes")), _in_many_ways]
)
def test_what_has_changed_is_captured_anew(explainer: Any, again: Any, change: Any) -> None:
    model = explainer.forward_func
    with changed(model, change):
        x = values(1).to(model.head.weight.dtype)
        assert_same(again(x, 2), explainer.attribute(x, [2] * 3))
    assert not assert_never_stale(explainer, again, values(1), 2)


@pytest.mark.parametrize("change", FOLLOWED)
@pytest.mark.parametrize(
    "explainer",
    [AttnLRP, pytest.param(TransformerAttribution, marks=pytest.mark.slow)],
    indirect=True,
)
def test_tensors_are_followed(explainer: Any, captured: Any, change: str) -> None:
    with changed(explainer.forward_func, FOLLOWED[change]):
        assert not assert_never_stale(explainer, captured, values(1), 2)
    assert not assert_never_stale(explainer, captured, values(1), 2)


def test_tied_weights_that_are_untied() -> None:
    model = classifier(blocks=2)
    _tie(model)
    method = AttnLRP(model)
    captured = method.capture(values(), 1)
    model.blocks[1].out.weight = nn.Parameter(torch.ones(16, 16))
    with pytest.raises(CaptureMismatchError, match="were one tensor"):
        captured(values(1), 2)


class _MayBeTied(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        one, other = (block.out.weight for block in self.blocks)
        return super().forward(x) * (3 if one is other else 1)


def test_weights_that_are_tied_later() -> None:
    torch.manual_seed(0)
    model = _MayBeTied(blocks=2).eval()
    method = AttnLRP(model)
    captured = method.capture(values(), 1, recapture=True)
    captured(values(1), 2)
    _tie(model)
    assert_same(captured(values(1), 2), method.attribute(values(1), [2] * 3))


def test_a_method_with_other_options() -> None:
    method = ConservativeLRP(classifier())
    captured = method.capture(values(), 1)
    method.layer_norm_rule = False
    with pytest.raises(CaptureMismatchError, match=r"method\.layer_norm_rule"):
        captured(values(1), 1)


def test_another_model() -> None:
    method = AttnLRP(classifier())
    captured = method.capture(values(), 1)
    method.forward_func = copy.deepcopy(method.forward_func)
    with pytest.raises(CaptureMismatchError, match="forward_func"):
        captured(values(1), 1)


class Compiled(Block):
    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def _compiled_in_place() -> Any:
    model = classifier()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.compile(classifier(), backend="eager"),
        lambda: classifier(Compiled),
        _compiled_in_place,
    ],
)
def test_compiled_code_is_captured_as_it_was_written(make: Any) -> None:
    model = make()
    method = AttnLRP(model)
    captured = method.capture(values(), 1)
    assert not assert_never_stale(method, captured, values(1), 2)
    model.blocks[0].scale = 0.5
    assert assert_never_stale(method, captured, values(1), 2)


def test_what_a_function_holds() -> None:
    model, factor, shift = classifier(), [2.0], torch.ones(())
    method = AttnLRP(lambda x: model(x * factor[0] + shift))
    captured = method.capture(values(), 1)
    shift.add_(1)
    assert not assert_never_stale(method, captured, values(1), 1)
    factor[0] = 3.0
    assert assert_never_stale(method, captured, values(1), 1)


SCALE = 1.0


class ScaledByGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * SCALE)


def test_a_global_number(monkeypatch: pytest.MonkeyPatch) -> None:
    method = AttnLRP(ScaledByGlobal())
    captured = method.capture(values(), 1)
    monkeypatch.setattr(f"{__name__}.SCALE", 3.0)
    monkeypatch.setitem(ScaledByGlobal.forward.__globals__, "SCALE", 3.0)
    assert assert_never_stale(method, captured, values(1), 1)


def test_a_class_with_another_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    method = AttnLRP(classifier())
    captured = method.capture(values(), 1)
    monkeypatch.setattr(Classifier, "forward", lambda self, x: self.head(self.embed(2 * x).mean(1)))
    with pytest.raises(CaptureMismatchError, match="forward"):
        captured(values(1), 1)


def test_cached_parametrisations() -> None:
    model = classifier()
    parametrize.register_parametrization(model.head, "weight", _Twice())
    method = AttnLRP(model)
    captured = method.capture(values(), 1)
    assert not assert_never_stale(method, captured, values(1), 2)
    with parametrize.cached():
        model(values())
        model.head.parametrizations.weight.original.data.mul_(3)  # which the cache doesn't show
        assert assert_never_stale(method, captured, values(1), 2)


def test_autocast_and_defaults() -> None:
    method, x = AttnLRP(classifier()), values(1)
    captured = method.capture(values(), 1)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(CaptureMismatchError, match="autocast"):
            captured(values(1), 1)
        again = method.capture(values(), 1)
        assert_same(again(values(1), 2), method.attribute(values(1), [2] * 3))
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(CaptureMismatchError, match="default dtype"):
            captured(x, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not assert_never_stale(method, captured, values(1), 1)


class OfFunctions(TorchFunctionMode):
    """Replaces an activation where a model calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        return 2 * found if func is nn.functional.gelu else found


class OfOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces an activation where torch computes it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        return 2 * found if func is torch.ops.aten.gelu.default else found


@pytest.mark.parametrize("mode", [OfFunctions, OfOperations])
def test_modes_that_may_change_functions(captured: Any, explainer: Any, mode: Any) -> None:
    with mode():
        with pytest.raises(CaptureMismatchError, match=mode.__name__):
            captured(values(1), 1)
        with pytest.raises(CaptureError, match=f"pass through {mode.__name__}"):
            explainer.capture(values(), 1)
    with torch.device("cpu"):
        assert not assert_never_stale(explainer, captured, values(1), 1)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (values(samples=2), "float32"),
        (values().double(), "float64"),
        (values().transpose(0, 1).contiguous().transpose(0, 1), "strides"),
        ((values(),), "tuple"),
        ({"x": values()}, "mapping"),
    ],
)
def test_inputs_of_another_form(captured: Any, given: Any, named: str) -> None:
    with pytest.raises(CaptureMismatchError, match=named):
        captured(given, 1)


@pytest.mark.slow
def test_recapture_keeps_several_graphs() -> None:
    method = AttnLRP(classifier())
    captured = method.capture(values(), 1, recapture=True)
    for samples in (3, 2, 3, 1, 2):
        x = values(samples, samples)
        assert_same(captured(x, 2), method.attribute(x, [2] * samples))
    assert len(captured._graphs) == 3


def test_further_arguments_are_compared_by_value() -> None:
    model = classifier()
    method = AttnLRP(lambda x, scale, mask=None: model(x * scale * mask))
    mask = torch.ones(3, 6, 1)
    captured = method.capture(values(), 1, (2.0,), additional_forward_kwargs={"mask": mask})
    named = {"mask": mask * 3}
    assert_same(
        captured(values(1), 2, (2.0,), additional_forward_kwargs=named),
        method.attribute(values(1), [2] * 3, (2.0,), additional_forward_kwargs=named),
    )
    with pytest.raises(CaptureMismatchError, match="further arguments"):
        captured(values(1), 2, (3.0,), additional_forward_kwargs=named)


@pytest.mark.parametrize("target", [7, [0, 1], (0, 1), torch.tensor([0, 1, 9]), 1.5])
def test_targets_that_do_not_fit(captured: Any, target: Any) -> None:
    with pytest.raises((InvalidTargetError, CaptureError, CaptureMismatchError)):
        captured(values(1), target)


@pytest.mark.parametrize("target", [[0, -1, 2], torch.tensor([0, -1, 2]), torch.tensor([0, -6, 2])])
def test_negative_indices_for_each_sample_are_refused_as_by_the_method(target: Any) -> None:
    method = AttnLRP(classifier())
    captured = method.capture(values(), 1)
    for call in (method.attribute, captured):
        with pytest.raises(InvalidTargetError):
            call(values(1), target)


def test_labels_as_bytes(explainer: Any, captured: Any) -> None:
    target = torch.tensor([4, 0, 2], dtype=torch.uint8)
    assert_same(captured(values(1), target), explainer.attribute(values(1), [4, 0, 2]))


def test_a_parameter_is_a_tensor_among_further_arguments() -> None:
    model = classifier()
    method = AttnLRP(lambda x, scale: model(x * scale))
    captured = method.capture(values(), 1, (nn.Parameter(torch.ones(8)),))
    scale = torch.full((8,), 2.0)
    assert_same(captured(values(1), 2, (scale,)), method.attribute(values(1), [2] * 3, (scale,)))


@pytest.mark.slow
def test_further_arguments_that_are_one_object(tmp_path: Path) -> None:
    model, x = classifier(), values(1)
    method = AttnLRP(lambda x, p, q: model(x + p * (3 if p is q else 1) + q))
    one, other = values(2), values(3)
    captured = method.capture(values(), 1, (one, other))
    with pytest.raises(CaptureMismatchError, match="the same tensor again"):
        captured(x, 2, (one, one))
    captured = method.capture(values(), 1, (one, one), recapture=True)
    captured.save(tmp_path / "explain.pt2")
    for given in ((other, other), (one, other), (x, x), (x, one)):
        assert_same(captured(x, 2, given), method.attribute(x, [2] * 3, given))
    loaded = load_captured(tmp_path / "explain.pt2")
    assert_same(loaded(x, 2, (other, other)), method.attribute(x, [2] * 3, (other, other)))
    with pytest.raises(CaptureMismatchError, match="the same tensor again"):
        loaded(x, 2, (other, other.clone()))


def test_an_input_that_is_a_further_argument_too() -> None:
    model, x = classifier(), values(1)
    method = AttnLRP(lambda x, p: model(x + 2 * p))
    captured = method.capture(x, 1, (x,))
    for given in (x, values(2)):
        assert_same(captured(x, 2, (given,)), method.attribute(x, [2] * 3, (given,)))


def test_copies_are_refused() -> None:
    captured = AttnLRP(classifier()).capture(values(), 1)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="Capture the call of the copied method"):
            copied(captured)
