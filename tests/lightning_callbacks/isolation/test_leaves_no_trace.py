"""State that affects a forward pass is restored, or explaining ends."""

import itertools
import random
import types
import warnings
from collections import deque
from typing import ClassVar

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from torch import nn

from captum_transformer.calling.fingerprint import Fingerprint
from captum_transformer.calling.isolation import isolated
from captum_transformer.errors import ExplanationError
from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.isolation.test_bit_identity import assert_same
from tests.lightning_callbacks.models import classifier
from tests.lightning_callbacks.runs import fit, read, steps

FREEZING = {
    "requires_grad": lambda model: model.requires_grad_(False),
    "precision": lambda model: model.double(),
    "half": lambda model: model.half(),
    "device": lambda model: model.to("meta"),
    "mode": lambda model: model.train(),
    "gradient": lambda model: [p.grad.zero_() for p in model.parameters() if p.grad is not None],
    "submodule": lambda model: setattr(model, "model", nn.Sequential(model.model[0])),
    "parameter": lambda model: setattr(model.model[0], "bias", None),
}


class Counter:
    def __init__(self):
        self.steps, self.history = 0, []


HIDDEN = nn.BatchNorm2d(3)


class Steered(nn.Module):
    """All that may steer a forward pass and is no parameter, buffer or submodule."""

    total = 0
    by_class: ClassVar = {"calls": 0}

    def __init__(self):
        super().__init__()
        self.torch_generator = torch.Generator().manual_seed(1)
        self.numpy_generator = np.random.default_rng(1)
        self.numpy_state = np.random.RandomState(1)
        self.python_generator = random.Random(1)
        self.recent = deque([0.0], maxlen=3)
        self.nested = {"counts": [{"steps": 0}], "generators": (torch.Generator().manual_seed(2),)}
        self.array = np.zeros(3)
        self.counter = Counter()
        self.beside = [nn.BatchNorm2d(3)]
        self.owner = types.SimpleNamespace(norm=nn.BatchNorm2d(3), calls=0)
        inner, self.calls = nn.BatchNorm2d(3), 0
        self.in_a_closure = lambda x: inner(x)  # noqa: PLW0108 - a module would be a submodule

    def forward(self, x):
        self.calls += 1
        type(self).total += 1
        self.by_class["calls"] += 1
        self.recent.append(self.recent[-1] + 1)
        self.nested["counts"][0]["steps"] += 1
        self.array += 1
        self.counter.steps += 1
        self.counter.history.append(self.counter.steps)
        self.owner.calls += 1
        draws = torch.rand(3, generator=self.torch_generator).sum()
        draws = draws + torch.rand(1, generator=self.nested["generators"][0])
        draws = draws + self.numpy_generator.random() + self.numpy_state.rand()
        draws = draws + self.python_generator.random()
        number = self.calls + self.recent[-1] + self.nested["counts"][0]["steps"]
        number = number + float(self.array.sum()) + self.counter.steps + len(self.counter.history)
        number = number + self.total + self.by_class["calls"]
        x = self.in_a_closure(self.owner.norm(self.beside[0](HIDDEN(x))))
        return x + 1e-2 * draws * (number + self.owner.calls)


def steered(pl):
    class WithSteered(type(classifier(pl))):
        def __init__(self):
            super().__init__()
            self.steered = Steered()

        def forward(self, x):
            return super().forward(self.steered(x))

    torch.manual_seed(0)
    HIDDEN.reset_running_stats()
    Steered.total, Steered.by_class["calls"] = 0, 0
    return WithSteered()


def trained(pl, options, callbacks, make):
    pl.seed_everything(3, verbose=False)
    module = make(pl)
    more = {"val_check_interval": 3, "accumulate_grad_batches": 2}
    trainer = fit(pl, options, None, module, callbacks=callbacks, **more)
    flags = [(p.requires_grad, p.dtype, p.device, p.grad is None) for p in module.parameters()]
    return (module.state_dict(), HIDDEN.state_dict()), flags, trainer


def assert_trained_alike(watched, plain):
    assert_same(watched[0], plain[0])
    assert watched[1] == plain[1]


PLAIN = {}


def trained_without(pl, options):
    """The same training without a monitor, which runs once."""
    if pl.__name__ not in PLAIN:
        PLAIN[pl.__name__] = trained(pl, options, [], classifier)[:2]
    return PLAIN[pl.__name__]


@pytest.mark.parametrize("how", FREEZING)
def test_a_method_that_changes_the_model(pl, trainer_options, how):
    def method(module):
        FREEZING[how](module)
        return Saliency(module)

    monitor = AttributionMonitor({"saliency": Saliency, "changes": method}, num_samples=2)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        watched = trained(pl, trainer_options, [monitor], classifier)
    assert_trained_alike(watched, trained_without(pl, trainer_options))
    said = [str(w.message) for w in warned if "'changes'" in str(w.message)]
    if how in ("requires_grad", "mode"):
        assert len(said) == 1
        assert "has changed" in said[0]
    assert len(said) == (how != "gradient")


def test_state_of_every_kind_is_put_back(pl, trainer_options):
    monitor = AttributionMonitor({"saliency": Saliency}, num_samples=2, on_error="raise")
    watched = trained(pl, trainer_options, [monitor], steered)
    assert_trained_alike(watched, trained(pl, trainer_options, [], steered))
    assert len(steps(read(watched[-1]).Images("attribution_sample_0/label/saliency"))) == 4


class Consuming(nn.Module):
    """Takes from what can't be copied."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.numbers = itertools.count()
        self.drawn = (number / 7 for number in itertools.count())

    def forward(self, x):
        if self.kind == "iterator":
            return x + 1e-3 * next(self.numbers)
        return x + 1e-3 * next(self.drawn)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("iterator", "consuming.numbers"),
        ("generator", "consuming.drawn"),
    ],
)
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_state_that_cannot_be_restored_ends_explaining(pl, trainer_options, kind, name, on_error):
    class Consumes(type(classifier(pl))):
        def __init__(self):
            super().__init__()
            self.consuming = Consuming(kind)

        def forward(self, x):
            return super().forward(self.consuming(x))

    monitor = AttributionMonitor({"saliency": Saliency}, num_samples=2, on_error=on_error)
    if on_error == "raise":
        with pytest.raises(ExplanationError, match=name):
            fit(pl, trainer_options, monitor, Consumes())
        return
    with pytest.warns(UserWarning, match=f"{name}.*explains nothing more"):
        trainer = fit(pl, trainer_options, monitor, Consumes())
    assert trainer.global_step == 16, "the training goes on"
    assert steps(read(trainer).Images("attribution_sample_0/label/saliency")) == [8]


@pytest.mark.both
def test_the_trainer_and_the_optimizer_are_no_state_of_the_module(pl, trainer_options):
    seen = []

    class Looks(Saliency):
        def attribute(self, inputs, **options):
            trainer = self.forward_func.trainer
            trainer.note = seen
            self.forward_func.optimizer.note = seen
            return super().attribute(inputs, **options)

    class Holds(type(classifier(pl))):
        def configure_optimizers(self):
            self.optimizer = super().configure_optimizers()
            return self.optimizer

    trainer = fit(
        pl,
        trainer_options,
        AttributionMonitor({"looks": Looks}, num_samples=1, on_error="raise"),
        Holds(),
    )
    assert trainer.note is seen
    assert trainer.lightning_module.optimizer.note is seen


def test_objects_with_locks_are_left_alone():
    import threading

    class Meter:
        def __init__(self):
            self.lock, self.value = threading.Lock(), 0

    module = nn.Linear(1, 1)
    module.meter = Meter()
    with isolated(module):
        module.meter.value = 1
    assert module.meter.value == 1


@pytest.mark.filterwarnings("ignore:torch")
def test_objects_that_refuse_to_tell_about_themselves_are_compared_by_identity():
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})

    class Silent:
        __slots__ = ()

        def __len__(self):
            raise NotImplementedError

    module.silent = Silent()
    before = Fingerprint(module)
    assert before.differences() == []
    module.silent = Silent()
    assert before.differences() == ["silent"]
