"""Other threads keep their random numbers, and can't train the model that is explained."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import GenericAttentionRelevance
from captum_transformer.calling.isolation import isolated
from captum_transformer.errors import ExplanationError


class Model(nn.Module):
    """Attention, dropout, and a random number in every mode if it is asked for."""

    def __init__(self, *, draws: bool = False) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        if self.draws:
            x = x + 1e-3 * torch.randn(x.shape)
        return self.head(self.encoder(x).mean(1))


def explain(model: nn.Module) -> None:
    GenericAttentionRelevance(model).attribute(torch.ones(2, 4, 8), target=1)


def in_a_thread(function: Callable[[], Any], until: Callable[[], Any]) -> list[Any]:
    """Calls a function again and again while another one runs here."""
    found: list[Any] = []
    stop, started = threading.Event(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                found.append(function())
            except ExplanationError as error:
                found.append(error)
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    until()
    stop.set()
    thread.join()
    return found


def repeatedly(model: nn.Module, times: int = 20) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            explain(model)

    return run


def test_draws_of_another_thread_are_not_repeated() -> None:
    drawn = in_a_thread(lambda: torch.rand(4).tolist(), repeatedly(Model()))
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn)


def test_the_random_state_is_restored() -> None:
    model = Model(draws=True)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    explain(model)
    assert torch.equal(torch.rand(3), expected)


def train(model: nn.Module) -> Callable[[], bool]:
    x = torch.ones(2, 4, 8)
    return lambda: bool(torch.equal(model(x), model(x)))


@pytest.mark.parametrize("way", ["explained", "isolated"])
def test_a_thread_that_trains_the_model_is_refused(way: str) -> None:
    model = Model().train()

    def until() -> None:
        if way == "explained":
            repeatedly(model, times=5)()
        else:
            with isolated(model):
                repeatedly(model, times=5)()

    found = in_a_thread(train(model), until)
    refused = [each for each in found if isinstance(each, ExplanationError)]
    assert refused
    assert "another thread" in str(refused[0])
    assert not any(each is True for each in found), "no forward pass had its dropout off"


def test_threads_that_explain_or_only_run_it_are_not() -> None:
    def both() -> None:
        explain(model)

    model = Model().train()
    assert not any(in_a_thread(both, repeatedly(model)))
    assert all(in_a_thread(train(model.eval()), repeatedly(model)))
