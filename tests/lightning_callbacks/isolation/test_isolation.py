import random

import numpy as np
import pytest
import torch
from torch import nn

from captum_transformer.calling.isolation import isolated


def draws():
    return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()  # noqa: NPY002


def seed_all():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002


def make():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    module[1].training = False
    module.register_buffer("calls", torch.zeros(()))
    return module


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_everything_is_as_before(error, mode):
    module = make()
    module(torch.randn(2, 4)).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    values = [gradient.clone() for gradient in gradients]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}
    seed_all()
    expected = draws()
    seed_all()

    def careless():
        with mode(), isolated(module), torch.inference_mode(False), torch.enable_grad():
            draws()
            assert not any(part.training for part in module.modules())
            module.train()
            module(torch.randn(5, 4)).sum().backward()
            module.calls += 1
            module.calls = module.calls + 1
            if error is not None:
                raise error

    if error is None:
        careless()
    else:
        with pytest.raises(error):
            careless()
    assert draws() == expected
    assert [part.training for part in module] == [True, False, True, True]
    for parameter, gradient, value in zip(module.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
    for name, (buffer, value) in buffers.items():
        assert module.get_buffer(name) is buffer
        assert torch.equal(buffer, value)


class Notes(nn.Module):
    """Counts and caches in attributes that are no buffers."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen, self.usage = 0, [], torch.zeros(3)
        self.cache = {"old": 1}

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        self.usage += 1
        self.cache.clear()
        self.cache["new"] = self.fresh = x
        self.register_forward_hook(lambda *_: None)
        return x


def test_counters_and_caches_are_as_before():
    module = nn.Sequential(Notes(), Notes())
    first = module[0]
    seen, usage, cache = first.seen, first.usage, first.cache
    with isolated(module):
        module(torch.ones(2))
        assert first.calls == 1
    assert (first.calls, first.seen, first.usage.tolist()) == (0, [], [0, 0, 0])
    assert first.cache == {"old": 1}
    assert first.seen is seen
    assert first.usage is usage
    assert first.cache is cache
    assert not hasattr(first, "fresh")
    assert not first._forward_hooks


def test_overridden_train_is_not_called():
    class Proud(nn.Module):
        def train(self, mode=True):
            raise AssertionError

    module = Proud()
    with isolated(module):
        assert not module.training
    assert module.training


def test_every_run_draws_the_same():
    module = make()
    with isolated(module, seed=5):
        first = draws()
    draws()
    with isolated(module, seed=5):
        assert draws() == first
    with isolated(module, seed=6):
        assert draws() != first


def test_a_cache_made_in_inference_mode_is_no_obstacle():
    module = make()
    with torch.inference_mode():
        module.register_buffer("cache", torch.ones(2))
    with isolated(module):
        pass
    assert module.cache.is_inference()
