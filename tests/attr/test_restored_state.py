"""Tensors and objects that a model writes into while it is explained are restored."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import DynamicCache

from captum_transformer import GenericAttentionRelevance
from tests.attr.snapshots import unchanged
from tests.attr.subjects import METHODS
from tests.attr.tiny_models import CLASSES, images, timm_vit


class WithBuffers(nn.Module):
    """Writes into its own tensors: buffers, attributes, and tensors in containers."""

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
def test_tensors_that_a_model_writes_into_are_restored(method: str) -> None:
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
    # The model still runs: its tensors don't belong to a graph that was freed.
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
    """Writes into objects that hold tensors, and stores new tensors in them."""

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
def test_objects_that_hold_tensors_are_restored(method: str) -> None:
    model = WithObjects()
    before, objects = _of_objects(model), list(map(id, vars(model).values()))
    first, again = (METHODS[method](model).attribute(images(), 1) for _ in "ab")
    assert torch.equal(first, again)
    assert _of_objects(model) == before
    assert list(map(id, vars(model).values())) == objects
    model(images())
    assert _of_objects(model) != before


class PackedParameter(nn.Parameter):
    """A weight whose values a package keeps in an attribute."""

    numbers: Tensor | None
    packing: Slotted


class Repacking(nn.Module):
    """On its first call, moves the values of its weight to another object and packs them."""

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
def test_weights_that_a_layer_repacks_on_its_first_call_are_restored(method: str) -> None:
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
def test_objects_that_train_or_feed_a_model_are_not_restored(
    held: Callable[[nn.Module], Any],
) -> None:
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


@torch.library.custom_op("tests_of_state::note_largest", mutates_args=("largest",))
def note_largest(x: Tensor, largest: Tensor) -> None:
    largest.copy_(torch.maximum(largest, x.abs().amax()))


def observed_by_a_kernel(model: Any, x: Tensor) -> Tensor:
    note_largest(x.detach(), model.largest)
    return x / model.largest


def counted_by_a_kernel(model: Any, x: Tensor) -> Tensor:
    torch.ops.tests_of_state.note_largest.default(model.largest + 1, largest=model.largest)
    return x * model.largest


def observed_by_torch(model: Any, x: Tensor) -> Tensor:
    on, scale = torch.ones(1, dtype=torch.long), torch.ones(1)
    zero = torch.zeros(1, dtype=torch.int32)
    torch.fused_moving_avg_obs_fake_quant(
        x.detach().float(), on, on, model.largest, model.largest, scale, zero, 0.1, 0, 255, -1
    )
    return x * model.largest


@pytest.mark.parametrize("way", [observed_by_a_kernel, counted_by_a_kernel, observed_by_torch])
def test_what_kernels_declare_to_write_is_restored(way: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = timm_vit()
            self.register_buffer("largest", torch.ones(()))

        def forward(self, pixels: Tensor) -> Tensor:
            return self.vit(way(self, pixels))

    model = Model()
    first, again = (GenericAttentionRelevance(model).attribute(images(), 1) for _ in "ab")
    assert torch.equal(model.largest, torch.ones(()))
    assert torch.equal(first, again)
