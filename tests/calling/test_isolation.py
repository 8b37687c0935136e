"""Which modules a function runs, and that explaining leaves them as they were."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer.calling.isolation import explaining, isolated, modules_of
from captum_transformer.errors import InvalidInputError

GLOBAL = nn.Linear(2, 2)


class Holder:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Any:
        return self.model(x)

    def run(self, x: Tensor) -> Any:
        return self.model(x)


class Method:
    """An object that can't be called itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def run(self, x: Tensor) -> Any:
        return self.model(x)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


def through(model: nn.Module, how: str) -> Any:
    """A function that runs a model, without being one."""
    models, by_name = [model], {"m": model}
    return {
        "a module": model,
        "a bound method": model.forward,
        "a partial": functools.partial(lambda m, x: m(x + 1), model),
        "a partial by name": functools.partial(lambda x, m: m(x + 1), m=model),
        "a closure": lambda x: model(x + 1),
        "a function in a closure": functools.partial(lambda f, x: f(x + 1), lambda x: model(x + 1)),
        "a list in a closure": lambda x: models[0](x + 1),
        "a dict in a closure": lambda x: by_name["m"](x + 1),
        "an object": Holder(model),
        "an object's method": Holder(model).run,
        "a method of what can't be called": Method(model).run,
        "a decorator": decorated(lambda x: model(x + 1)),
        "another module's parts": nn.Sequential(nn.ReLU(), model),
    }[how]


HOWS = [
    "a module",
    "a bound method",
    "a partial",
    "a partial by name",
    "a closure",
    "a function in a closure",
    "a list in a closure",
    "a dict in a closure",
    "an object",
    "an object's method",
    "a method of what can't be called",
    "a decorator",
    "another module's parts",
]


@pytest.mark.parametrize("how", HOWS)
def test_the_modules_that_a_function_runs(how: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))

    found = [module for _, module in modules_of(through(model, how))]

    assert {id(module) for module in model.modules()} <= {id(module) for module in found}
    assert len(found) == len({id(module) for module in found})


def test_a_global_is_found_by_the_name_it_is_used_by() -> None:
    assert modules_of(lambda x: GLOBAL(x + 1)) == [("GLOBAL", GLOBAL)]


@pytest.mark.parametrize("given", [nn.Linear, None, 3, torch.ones(2)])
def test_objects_that_run_no_model_are_refused(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be a model, or a function that runs one"):
        modules_of(given)


class Writes(nn.Module):
    """Writes wherever a module can write when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))
        self.drop = nn.Dropout()
        self.notes: list[int] = [1]
        self.cache: dict[str, Tensor] = {}
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("late", torch.ones(1))
        self.notes.append(2)
        self.cache["x"] = x
        self.step += 1
        self.new = x
        self.drop.register_forward_hook(lambda *_: None)
        return self.drop(x) + torch.rand_like(x)


def state_of(model: Writes) -> Any:
    return (
        {name: module.training for name, module in model.named_modules()},
        sorted(vars(model)),
        sorted(name for name, _ in model.named_buffers()),
        model.count.clone(),
        (list(model.notes), list(model.cache), model.step),
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_explaining_restores_a_module(context: Any, *, fails: bool) -> None:
    model, x = Writes(), torch.ones(2)
    model.train()
    model.drop.eval()  # a part that is frozen
    with context():
        before = state_of(model)
        try:
            with explaining(modules_of(model), [x]) as state:
                assert not any(module.training for module in model.modules())
                assert torch.is_grad_enabled()
                assert not torch.is_inference_mode_enabled()
                state.before_write(model.count)
                model.count.add_(1)
                model(x)
                if fails:
                    raise ValueError
        except ValueError:
            assert fails
        assert same(state_of(model), before)


def test_a_module_in_a_place_nobody_looks_is_in_evaluation_mode_when_it_is_called() -> None:
    hidden = nn.Sequential(nn.Dropout(1.0))

    class Registry:
        __slots__ = ("get",)

        def __init__(self) -> None:
            self.get = lambda: hidden

    registry = Registry()
    x = torch.ones(3)

    with explaining(modules_of(lambda x: registry.get()(x + 1)), [x]):
        assert torch.equal(registry.get()(x), x)
    assert hidden.training
    assert hidden[0].training


def test_backward_hooks_do_not_run_and_stay() -> None:
    model, ran = nn.Linear(2, 1), []
    model.register_full_backward_hook(lambda *_: ran.append(1))

    def backward() -> None:
        x = torch.ones(1, 2, requires_grad=True)
        torch.autograd.grad(model(x).sum(), x)

    with explaining(modules_of(model), [torch.ones(1)]):
        backward()
    assert ran == []
    backward()
    assert ran == [1]


def test_isolated_puts_back_gradients_and_what_training_needs() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model(torch.rand(4, 2)).sum().backward()
    model[0].bias.requires_grad_(requires_grad=False)
    held = {name: p.grad for name, p in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with isolated(model, seed=3):
        assert all(p.grad is None for p in model.parameters())
        first = torch.rand(3)
        model.train()
        model(torch.rand(4, 2)).sum().backward()
        model.requires_grad_(requires_grad=False)
        with torch.no_grad():
            model[0].weight.requires_grad_()
    with isolated(model, seed=3):
        assert torch.equal(torch.rand(3), first)

    assert all(p.grad is held[name] for name, p in model.named_parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


class Halves(OrderedDict[str, float]):
    """Makes something else of what it stores, as the activations of Transformers."""

    def __getitem__(self, key: str) -> float:
        return super().__getitem__(key) / 2


class HoldsHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.halves = Halves(a=4.0)
        self.writes = Halves(a=4.0)

    def forward(self, x: Tensor) -> Any:
        self.writes["b"] = self.writes["a"]
        return self.linear(x) * self.halves["a"]


def test_containers_that_make_something_of_their_items_store_what_they_did() -> None:
    model = HoldsHalves()
    with isolated(model):
        model(torch.zeros(1, 2))
    for halves in (model.halves, model.writes):
        assert list(dict.items(halves)) == [("a", 4.0)]
