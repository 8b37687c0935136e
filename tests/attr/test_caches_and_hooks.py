"""Values, layers and hooks that a model adds to itself while it is explained are dropped."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from tests.attr.snapshots import state_of, unchanged
from tests.attr.tiny_models import images, timm_vit


class Caching(nn.Module):
    """Caches a value computed from its weights for as long as it is in evaluation mode."""

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
def test_values_that_a_model_caches_are_dropped(hidden: bool) -> None:
    class Holder:
        def __init__(self, model: nn.Module) -> None:
            self.models = {"it": [model]}

        def __call__(self, pixels: Tensor) -> Tensor:
            return self.models["it"][0](pixels)

    model = Caching().train()
    before = state_of(model)
    function = Holder(model) if hidden else model
    GenericAttentionRelevance(function).attribute(images(), 1)
    assert state_of(model) == before
    model.scale.data.fill_(3.0)
    pixels = images()
    torch.testing.assert_close(model.eval()(pixels), model.vit(pixels) * 6)


class Registers(nn.Module):
    """On its first call, stores a weight with a value computed from it, and adds a layer."""

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
def test_layers_and_weights_that_a_model_adds_are_dropped(used_before: bool) -> None:
    model = Registers().eval()
    pixels = images()
    if used_before:
        model(pixels)
    model.scale = nn.Parameter(torch.full((), 3.0, dtype=torch.float64))
    before = state_of(model)
    GenericAttentionRelevance(model).attribute(pixels, 1)
    assert state_of(model) == before
    torch.testing.assert_close(model(pixels), model.vit(pixels) * 6)


class Hooked(Caching):
    """Installs hooks on its first call, and remembers that it has."""

    installed = False

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.installed:
            self.vit.head.register_forward_hook(lambda *_: None)
            self.vit.head.register_forward_pre_hook(lambda *_, **__: None, with_kwargs=True)
            self.installed = True
        return super().forward(pixels)


@pytest.mark.parametrize("used_before", [False, True])
def test_hooks_that_a_model_installs_are_dropped(used_before: bool) -> None:
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
    """The model is first seen when it is called, and installs hooks on parts not called yet."""

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
    """Runs a model with a hook that it removes afterwards."""

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
def test_a_forward_function_removes_its_own_hooks(holder: type) -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), nn.Flatten())
    model.register_forward_hook(lambda *_: None)
    hooks = dict(model._forward_hooks)
    GenericAttentionRelevance(holder(model).scores).attribute(torch.randn(2, 4, 8), 1)
    assert model._forward_hooks == hooks
