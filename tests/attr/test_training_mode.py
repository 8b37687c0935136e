"""Models in training mode are explained as in evaluation mode, and training continues unchanged."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from tests.attr.snapshots import unchanged
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import embeddings, encoder, images, timm_vit, with_random_weights


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
    """The explanation of the model in evaluation mode."""
    return METHODS[method](Noisy().eval()).attribute(images(), 1)


@pytest.fixture(scope="module")
def noisy() -> Noisy:
    return Noisy()


@pytest.mark.filterwarnings("ignore:.*CUDA")
@pytest.mark.parametrize("form", _forward_functions(nn.Identity()))
def test_training_mode_has_the_map_of_evaluation_mode(noisy: Noisy, form: str) -> None:
    pixels = images()
    noisy.train()
    assert not torch.equal(noisy(pixels), noisy(pixels))
    noisy.load_state_dict(Noisy().state_dict())  # training mode has moved the statistics
    forward = _forward_functions(noisy)[form]

    # All methods search a forward function in the same place: one form is enough for each of them.
    for method in METHODS if form == "lambda" else ("GenericAttentionRelevance", "AttnLRP"):
        with unchanged(noisy, pixels):
            result = METHODS[method](forward).attribute(pixels, 1)
        assert torch.equal(result, _evaluated(method)), method


GLOBAL_MODEL = Noisy()


def from_globals(pixels: Tensor) -> Tensor:
    return GLOBAL_MODEL(pixels)


def test_a_model_that_a_function_finds_among_its_globals() -> None:
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
