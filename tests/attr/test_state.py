"""Explaining a model leaves it, its inputs and the random state exactly as they were."""

import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import DynamicCache

from captum_transformer import GenericAttentionRelevance
from captum_transformer.errors import InvalidTargetError, NoAttentionError
from tests.attr.subjects import (
    CLASSES,
    FLOW_METHODS,
    METHODS,
    SUBJECTS,
    as_tuple,
    assert_close,
    attributed,
    bert,
    embeddings,
    encoder,
    images,
    subject,
    timm_vit,
    with_random_weights,
)


def _snapshot(value: Any) -> Any:
    """Something that compares equal exactly if the value has not changed."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().clone().view(torch.uint8) if value.ndim else value.item()
        return (
            id(value),
            value.requires_grad,
            value.dtype,
            content.numpy().tobytes() if isinstance(content, Tensor) else content,
            None if not value.is_leaf or value.grad is None else _snapshot(value.grad),
        )
    if isinstance(value, dict):
        return id(value), {key: _snapshot(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value), [_snapshot(v) for v in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return id(value)


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: _snapshot(vars(module)) for name, module in model.named_modules()}


def _random_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy_state[0],
        numpy_state[1].tobytes(),
        numpy_state[2:],
    )


def _modes() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        len(torch.overrides._get_current_function_mode_stack()) == 0,
    )


@contextmanager
def unchanged(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Asserts that nothing is different afterwards, also if the block raises."""
    before = _state(model), _snapshot(list(tensors)), _random_state(), _modes()
    try:
        yield
    finally:
        after = _state(model), _snapshot(list(tensors)), _random_state(), _modes()
        for old, new in zip(before, after, strict=True):
            assert old == new


def tensors_of(given: Any) -> tuple[Tensor, ...]:
    return (*as_tuple(given.inputs), *(given.extra or ()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, True) for name in SUBJECTS), ("timm ViT", False), ("nn.TransformerEncoder", False)],
)
def test_nothing_changes(name: str, training: bool, method: str) -> None:
    given = subject(name)
    given.model.train(training)

    with unchanged(given.model, *tensors_of(given)):
        given.attribute(METHODS[method])


@pytest.mark.parametrize("method", METHODS)
def test_mixed_modes_frozen_parameters_and_gradients_stay(method: str) -> None:
    given = subject("timm ViT")
    for i, module in enumerate(given.model.modules()):
        module.training = i % 3 == 0
    for i, parameter in enumerate(given.model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        if i % 4 == 0:
            parameter.grad = torch.ones_like(parameter)
    given.model.head.register_forward_hook(lambda *_: None)
    pixels = given.inputs.requires_grad_()
    pixels.grad = torch.full_like(pixels, 7.0)

    with unchanged(given.model, pixels):
        explain = METHODS[method](given.model)
        result = explain.attribute(pixels, given.target)
        explain.attribute_tokens(pixels, given.target)
        explain.attribute_targets(pixels, [0, 1])
    assert_close(result, attributed("timm ViT", method))


@pytest.mark.parametrize("method", METHODS)
def test_frozen_model(method: str) -> None:
    given = subject("BERT")
    given.model.requires_grad_(False)

    with unchanged(given.model, *tensors_of(given)):
        result = given.attribute(METHODS[method])
    assert_close(result, attributed("BERT", method))


class Failing(nn.Module):
    """Raises late in its forward pass, having drawn random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = timm_vit()

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.inner(pixels)
        torch.rand(5)
        raise FloatingPointError(f"no logits of shape {tuple(logits.shape)}")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", METHODS)
def test_error_of_the_model_passes_and_nothing_changes(method: str, training: bool) -> None:
    model, pixels = Failing().train(training), images()
    explain = METHODS[method](model)

    for attribute in (explain.attribute, explain.attribute_tokens):
        with unchanged(model, pixels), pytest.raises(FloatingPointError, match=r"\(3, 5\)"):
            attribute(pixels, 1)
    with unchanged(model, pixels), pytest.raises(FloatingPointError):
        explain.attribute_targets(pixels, [1, 2])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_after_a_bad_target(method: str) -> None:
    given = subject("timm ViT")
    given.model.train()

    with unchanged(given.model, given.inputs), pytest.raises(InvalidTargetError):
        given.attribute(METHODS[method], target=99)


def test_nothing_changes_after_a_refusal() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(288, CLASSES)).double().train()
    pixels = images()

    for method in FLOW_METHODS.values():
        with unchanged(model, pixels), pytest.raises(NoAttentionError):
            method(model).attribute(pixels, 1)


def test_attention_implementation_stays() -> None:
    for attention in ("sdpa", "eager"):
        model = bert(attention)
        for method in METHODS.values():
            method(model).attribute(torch.ones(1, 4).long(), 1)
        assert model.config._attn_implementation == attention


# Whatever is random or depends on the batch in training is off.


class Noisy(nn.Module):
    """Batch norm, dropout and stochastic depth around a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.vit = timm_vit(
            drop_rate=0.5,
            pos_drop_rate=0.3,
            proj_drop_rate=0.3,
            attn_drop_rate=0.3,
            drop_path_rate=0.5,
        )
        with_random_weights(self)
        self.norm.running_mean += 0.3
        self.norm.running_var *= 2

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vit(self.norm(pixels))


def _forward_functions(model: nn.Module) -> dict[str, Callable[..., Any]]:
    class Wrapper:
        def __init__(self) -> None:
            self.model = model

        def __call__(self, pixels: Tensor) -> Tensor:
            return self.model(pixels)

        def predict(self, pixels: Tensor) -> Tensor:
            return self.model(pixels)

    def closure(pixels: Tensor) -> Tensor:
        return model(pixels)

    def with_model(network: nn.Module, pixels: Tensor) -> Tensor:
        return network(pixels)

    models, nested, wrapper = {"one": model}, {"all": [{"one": model}]}, Wrapper()

    return {
        "module": model,
        "lambda": lambda pixels: model(pixels),  # noqa: PLW0108
        "closure": closure,
        "partial": functools.partial(with_model, model),
        "partial of a keyword": functools.partial(
            lambda pixels, network: network(pixels), network=model
        ),
        "bound method of the module": model.forward,
        "bound method of an object": wrapper.predict,
        "object": wrapper,
        "object in a closure": lambda pixels: wrapper.model(pixels),  # noqa: PLW0108
        "method of an object in a closure": lambda pixels: wrapper.predict(pixels),  # noqa: PLW0108
        "nested closure": lambda pixels: closure(pixels),  # noqa: PLW0108
        "wrapped": functools.wraps(closure)(lambda *args: closure(*args)),  # noqa: PLW0108
        "data parallel": nn.DataParallel(model),
        "container in a closure": lambda pixels: models["one"](pixels),  # noqa: PLW0108
        "containers in containers": lambda pixels: nested["all"][0]["one"](pixels),  # noqa: PLW0108
    }


@functools.cache
def _evaluated(method: str) -> Tensor:
    """What a method says of the model in evaluation mode."""
    return METHODS[method](Noisy().eval()).attribute(images(), 1)


@pytest.fixture(scope="module")
def noisy() -> Noisy:
    return Noisy()


@pytest.mark.filterwarnings("ignore:.*CUDA")
@pytest.mark.parametrize("form", _forward_functions(nn.Identity()))
def test_training_mode_gives_what_evaluation_mode_does(noisy: Noisy, form: str) -> None:
    pixels = images()
    noisy.train()
    assert not torch.equal(noisy(pixels), noisy(pixels))
    noisy.load_state_dict(Noisy().state_dict())  # training mode has moved the statistics
    forward = _forward_functions(noisy)[form]

    # The forms are looked through in one place, to which each method has to go.
    for method in METHODS if form == "lambda" else ("GenericAttentionRelevance", "AttnLRP"):
        with unchanged(noisy, pixels):
            result = METHODS[method](forward).attribute(pixels, 1)
        assert torch.equal(result, _evaluated(method)), method


GLOBAL_MODEL = Noisy()


def from_globals(pixels: Tensor) -> Tensor:
    return GLOBAL_MODEL(pixels)


def test_model_that_a_function_finds_among_the_globals() -> None:
    pixels = images()
    expected = GenericAttentionRelevance(GLOBAL_MODEL.eval()).attribute(pixels, 1)
    GLOBAL_MODEL.train()

    with unchanged(GLOBAL_MODEL, pixels):
        result = GenericAttentionRelevance(from_globals).attribute(pixels, 1)
    assert torch.equal(result, expected)


def test_dropout_that_ignores_the_mode_is_off() -> None:
    model = encoder()

    def always_dropping(tokens: Tensor) -> Tensor:
        dropped = nn.functional.dropout(tokens, 0.5, training=True)
        return model(nn.functional.dropout(dropped))

    for method in METHODS.values():
        result = method(always_dropping).attribute(embeddings(), 1)
        assert_close(result, method(model).attribute(embeddings(), 1))


# The caller's modes.


@contextmanager
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("mode", [torch.no_grad, _inference], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm Swin", "BERT", "nn.TransformerEncoder", "pixels and ids"])
def test_callers_gradient_mode_does_not_matter(name: str, method: str, mode: Any) -> None:
    given = subject(name)
    with mode():
        # Inference tensors if made in inference mode.
        made = given.map(torch.clone)
        assert tensors_of(made)[0].is_inference() == (mode is _inference)
        result = made.attribute(METHODS[method])

    assert_close(result, attributed(name, method), relative=0)
    assert not any(t.is_inference() for t in as_tuple(result))


@pytest.mark.parametrize("method", METHODS)
def test_target_made_in_inference_mode(method: str) -> None:
    given = subject("timm ViT")
    with torch.inference_mode():
        result = given.attribute(METHODS[method], target=torch.tensor(given.target))

    assert_close(result, attributed("timm ViT", method), relative=0)


def test_input_that_is_part_of_a_graph() -> None:
    given = subject("timm ViT")
    leaf = given.inputs.clone().requires_grad_()
    pixels = leaf * 1.0

    result = GenericAttentionRelevance(given.model).attribute(pixels, given.target)

    assert not result.requires_grad
    assert leaf.grad is None
    pixels.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))
    assert_close(result, attributed("timm ViT", "GenericAttentionRelevance"), relative=0)


def test_model_that_writes_into_its_input_does_not_change_the_users() -> None:
    given = subject("timm ViT")

    def normalising(pixels: Tensor) -> Tensor:
        return given.model(pixels.sub_(0.5).div_(0.5))

    with unchanged(given.model, given.inputs):
        result = GenericAttentionRelevance(normalising).attribute(given.inputs, 1)
    expected = GenericAttentionRelevance(given.model).attribute((given.inputs - 0.5) / 0.5, 1)
    assert_close(result, expected)


def test_explaining_twice_gives_the_same() -> None:
    given = subject("timm ViT")
    for method in METHODS.values():
        explain = method(given.model)
        first = explain.attribute(given.inputs, given.target)
        assert torch.equal(first, explain.attribute(given.inputs, given.target))
        assert first.data_ptr() != given.inputs.data_ptr()


def test_training_after_an_explanation_is_bit_identical() -> None:
    def train(explained: bool) -> list[Tensor]:
        torch.manual_seed(5)
        model, pixels = Noisy().train(), images()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(2):
            loss = model(pixels).square().mean()
            loss.backward()
            if explained:
                for method in METHODS.values():
                    method(model).attribute(pixels, step)
            optimizer.step()
            optimizer.zero_grad()
        return [t.clone() for t in model.state_dict().values()]

    for plain, watched in zip(train(False), train(True), strict=True):
        assert torch.equal(plain, watched)


class Caching(nn.Module):
    """Keeps what it has computed of its weights for as long as it is in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm_vit()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.cache: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.register_buffer("last", torch.zeros(1))

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.training and "scale" not in self.cache:
            self.cache["scale"] = self.scale * 2
        scores = self.vit(pixels) * (self.scale * 2 if self.training else self.cache["scale"])
        self.scores = scores
        self.last = scores.detach()
        self.seen.append(scores)
        return scores

    def train(self, mode: bool = True) -> "Caching":
        if mode:
            self.cache = {}
        return super().train(mode)


@pytest.mark.parametrize("hidden", [False, True])
def test_what_a_model_keeps_while_it_is_explained_is_dropped(hidden: bool) -> None:
    class Holder:
        def __init__(self, model: nn.Module) -> None:
            self.models = {"it": [model]}

        def __call__(self, pixels: Tensor) -> Tensor:
            return self.models["it"][0](pixels)

    model = Caching().train()
    before = _state(model)
    function = Holder(model) if hidden else model
    GenericAttentionRelevance(function).attribute(images(), 1)
    assert _state(model) == before
    model.scale.data.fill_(3.0)
    pixels = images()
    torch.testing.assert_close(model.eval()(pixels), model.vit(pixels) * 6)


class Registers(nn.Module):
    """Registers a weight that it has computed something from, and a layer, when it first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm_vit()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.computed_from: Tensor | None = None
        self.layer: nn.Module | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        if self.computed_from is not self.scale:
            self.computed_from, self.computed = self.scale, (2 * self.scale).detach()
        if self.layer is None:
            self.layer = nn.Identity()
        return self.layer(self.vit(pixels)) * self.computed


@pytest.mark.parametrize("used_before", [False, True])
def test_what_a_model_registers_while_it_is_explained_is_dropped(used_before: bool) -> None:
    model = Registers().eval()
    pixels = images()
    if used_before:
        model(pixels)
    model.scale = nn.Parameter(torch.full((), 3.0, dtype=torch.float64))
    before = _state(model)
    GenericAttentionRelevance(model).attribute(pixels, 1)
    assert _state(model) == before
    torch.testing.assert_close(model(pixels), model.vit(pixels) * 6)


class Hooked(Caching):
    """Installs a hook when it first runs, and notes that it has."""

    installed = False

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.installed:
            self.vit.head.register_forward_hook(lambda *_: None)
            self.vit.head.register_forward_pre_hook(lambda *_, **__: None, with_kwargs=True)
            self.installed = True
        return super().forward(pixels)


@pytest.mark.parametrize("used_before", [False, True])
def test_hooks_that_a_model_installs_while_it_is_explained_are_dropped(used_before: bool) -> None:
    model = Hooked().eval()
    if used_before:
        model(images())
    with unchanged(model):
        GenericAttentionRelevance(model).attribute(images(), 1)
    model(images())
    assert len(model.vit.head._forward_hooks) == 1
    assert len(model.vit.head._forward_pre_hooks_with_kwargs) == 1


@pytest.mark.parametrize("used_before", [False, True])
def test_hooks_of_a_model_within_an_object_are_dropped(used_before: bool) -> None:
    """It is first seen as it is called, and puts hooks on parts that have not been called yet."""

    class Held:
        def __init__(self, model: nn.Module) -> None:
            self.models = [[model]]

        def scores(self, pixels: Tensor) -> Tensor:
            return self.models[0][0](pixels)

    model = Hooked().eval()
    held = Held(model)
    if used_before:
        model(images())
    with unchanged(model):
        for _ in range(2):
            GenericAttentionRelevance(held.scores).attribute(images(), 1)
    model(images())
    assert len(model.vit.head._forward_hooks) == 1
    assert len(model.vit.head._forward_pre_hooks_with_kwargs) == 1


class Holder:
    """An object of the user's that runs a model with a hook of its own in between."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def scores(self, inputs: Tensor) -> Tensor:
        handle = self.model.register_forward_hook(lambda *_: None)
        try:
            return self.model(inputs)
        finally:
            handle.remove()


class HolderOfHolder:
    def __init__(self, model: nn.Module) -> None:
        self.holder = Holder(model)

    def scores(self, inputs: Tensor) -> Tensor:
        return self.holder.scores(inputs)


@pytest.mark.parametrize("holder", [Holder, HolderOfHolder])
def test_hooks_of_the_forward_function_go_when_it_removes_them(holder: type) -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), nn.Flatten())
    model.register_forward_hook(lambda *_: None)
    hooks = dict(model._forward_hooks)
    GenericAttentionRelevance(holder(model).scores).attribute(torch.randn(2, 4, 8), 1)
    assert model._forward_hooks == hooks


class WithBuffers(nn.Module):
    """Writes into tensors of its own: buffers, attributes, and what these hold."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm_vit()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("keys", torch.zeros(3, CLASSES, dtype=torch.float64))
        self.values = torch.zeros(3, CLASSES, dtype=torch.float64)
        self.nested = {"layers": [(torch.zeros(3, dtype=torch.float64), [0])]}

    def forward(self, pixels: Tensor) -> Tensor:
        scores = self.vit(pixels)
        self.count += 1
        self.keys[: len(scores)] = scores
        self.values[0].copy_(scores[0])
        tensor, numbers = self.nested["layers"][0]
        tensor.add_(torch.rand(3))
        numbers.append(random.random() + np.random.rand())  # noqa: NPY002
        self.nested["layers"].append(scores)
        return scores * self.count + self.keys[: len(scores)] * 0


@pytest.mark.parametrize("method", METHODS)
def test_tensors_that_a_model_writes_into_are_as_they_were(method: str) -> None:
    model = WithBuffers()
    before = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    numbers = model.nested["layers"][0][1]

    with unchanged(nn.Module()):
        first, again = (METHODS[method](model).attribute(images(), 1) for _ in "ab")

    assert torch.equal(first, again)
    for name, buffer in model.named_buffers():
        assert id(buffer) == before[name][0]
        assert torch.equal(buffer, before[name][1])
    tensors = (*model.buffers(), model.values, model.nested["layers"][0][0])
    assert not any(t.requires_grad or t.any() for t in tensors)
    assert len(model.nested["layers"]) == 1
    assert numbers == [0]
    # The model goes on: what it holds is no part of a graph that is gone.
    model(images()).sum().backward()


class Slotted:
    __slots__ = ("keys", "later")

    def __init__(self) -> None:
        self.keys = torch.zeros(3, dtype=torch.float64)


class Nest:
    """An object that holds others, and itself."""

    def __init__(self) -> None:
        self.inner, self.queue, self.this = Slotted(), deque([Slotted()]), self


class WithObjects(nn.Module):
    """Writes into objects that hold tensors, or come to hold some."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm_vit()
        self.cache = DynamicCache()
        self.filled = DynamicCache()
        self.filled.update(torch.ones(1, 1, 2, CLASSES), torch.ones(1, 1, 2, CLASSES), 0)
        self.nest = Nest()
        self.list, self.dict = [Slotted()], {"slotted": Slotted()}

    def forward(self, pixels: Tensor) -> Tensor:
        scores = self.vit(pixels)
        states = scores[:, None, None].float()
        for cache in (self.cache, self.filled):
            cache.update(states[:1], states[:1], 0)
        for held in (self.nest.inner, self.nest.queue[0], self.list[0], self.dict["slotted"]):
            held.keys += scores[0, 0]
            held.later = scores
        self.nest.inner.keys = scores
        self.nest.queue.append(scores)
        self.list.append(scores)
        return scores


def _of_objects(model: WithObjects) -> list[Any]:
    held = (model.nest.inner, model.nest.queue[0], model.list[0], model.dict["slotted"])
    tensors = [*(one.keys for one in held), *model.filled.layers[0].__dict__.values()]
    return [
        [(id(t), t.tolist(), t.requires_grad) for t in tensors if isinstance(t, Tensor)],
        [hasattr(one, "later") for one in held],
        [len(model.nest.queue), len(model.list), model.cache.get_seq_length()],
        model.filled.get_seq_length(),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_objects_that_hold_tensors_are_as_they_were(method: str) -> None:
    model = WithObjects()
    before, objects = _of_objects(model), list(map(id, vars(model).values()))
    first, again = (METHODS[method](model).attribute(images(), 1) for _ in "ab")
    assert torch.equal(first, again)
    assert _of_objects(model) == before
    assert list(map(id, vars(model).values())) == objects
    model(images())
    assert _of_objects(model) != before


class PackedParameter(nn.Parameter):
    """Weights of a package's own, which has numbers for them."""

    numbers: Tensor | None
    packing: Slotted


class Repacking(nn.Module):
    """Moves its weights' numbers to an object when it first runs, and packs them anew."""

    def __init__(self) -> None:
        super().__init__()
        ones = torch.ones(CLASSES, CLASSES, dtype=torch.float64)
        self.weight = PackedParameter(ones, requires_grad=False)
        self.weight.numbers = 2 * torch.eye(CLASSES, dtype=torch.float64)
        self.weight.packing = self.packing = Slotted()
        self.vit, self.held = timm_vit(), Slotted()
        del self.held.keys

    def forward(self, pixels: Tensor) -> Tensor:
        if self.weight.numbers is not None:
            self.held.keys, self.weight.numbers = self.weight.numbers, None
            self.weight.data = self.weight.data.t().contiguous() * 3
            self.packing.keys = torch.full((2,), 3.0, dtype=torch.float64)
        scores: Tensor = self.vit(pixels) @ self.held.keys
        return scores * self.weight.sum() / self.packing.keys.sum()


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_a_layer_takes_over_when_it_first_runs_are_as_they_were(method: str) -> None:
    model, other = Repacking(), Repacking()
    weight = model.weight.data
    first, again = (METHODS[method](model).attribute(images(), 1) for _ in "ab")
    assert torch.equal(first, again)
    assert model.weight.numbers is not None
    assert model.weight.data_ptr() == weight.data_ptr()
    assert not hasattr(model.held, "keys")
    assert torch.equal(model(images()), other(images()))


def _with_modules(model: nn.Module) -> Any:
    return model


def _with_data(_: nn.Module) -> Any:
    return TensorDataset(torch.zeros(3))


@pytest.mark.parametrize("held", [_with_modules, _with_data])
def test_what_trains_or_feeds_a_model_goes_on(held: Callable[[nn.Module], Any]) -> None:
    class Trainer:
        def __init__(self, model: nn.Module) -> None:
            self.held, self.seen, self.last = held(model), [], torch.zeros(())

    class Counting(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            trainer.seen.append(len(pixels))
            return vit(pixels)

    vit, model = timm_vit(), Counting()
    model.trainer = [trainer := Trainer(model)]
    GenericAttentionRelevance(model).attribute(images(), 1)
    assert trainer.seen
