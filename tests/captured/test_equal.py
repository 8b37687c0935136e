"""Captured calls give what the methods give, to the last bit, on other inputs and targets."""

import random
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import captum_transformer
from captum_transformer import (
    AttnLRP,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from tests.attr.subjects import METHODS, SUBJECTS, Subject, subject, with_random_weights
from tests.captured.models import CLASSES, assert_same, classifier, for_each, values
from tests.flow.graphs import drawn, tokens
from tests.flow.programs import CLASSES as CLASSES_OF_GRAPHS
from tests.flow.programs import Attention
from tests.public_methods import OF_SCORES

# All passes: a gradient with rules, and one with maps, flow and relevance. That each method can be
# captured is shown with one model below.
EACH = [
    pytest.param(name, method, marks=pytest.mark.slow if place % 3 else ())
    for place, name in enumerate(SUBJECTS)
    for method in ("AttnLRP", "TransformerAttribution")
]


def other_inputs(explained: Subject, seed: int = 1) -> Any:
    """Other values and other token ids, in the same form."""
    generator = torch.Generator().manual_seed(seed)

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return torch.randint(1, 30, tensor.shape, generator=generator)

    inputs = explained.inputs
    return tuple(map(other, inputs)) if isinstance(inputs, tuple) else other(inputs)


def llama() -> Subject:
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    model = with_random_weights(transformers.LlamaForCausalLM(config))
    ids = torch.randint(1, 30, (2, 7), generator=torch.Generator().manual_seed(2))
    return Subject(model, ids, (6, 3), tokens=(7,))


@pytest.mark.parametrize(("name", "method"), EACH)
def test_equal_on_other_inputs_and_targets(name: str, method: str) -> None:
    explained = subject(name)
    explainer = METHODS[method](explained.model)
    further = explained.extra, explained.named
    captured = explainer.capture(
        explained.inputs, explained.target, further[0], additional_forward_kwargs=further[1]
    )
    for inputs, target in (
        (explained.inputs, explained.target),
        (other_inputs(explained), [0, 0, 4]),
        (other_inputs(explained, 2), 2),
    ):
        count = len(explained.target)
        found = captured(inputs, target, further[0], additional_forward_kwargs=further[1])
        expected = explainer.attribute(
            inputs, for_each(target, count), further[0], additional_forward_kwargs=further[1]
        )
        assert_same(found, expected)


@pytest.mark.parametrize(
    "method",
    [
        TransformerAttribution,
        pytest.param(GenericAttentionRelevance, marks=pytest.mark.slow),
        ConservativeLRP,
        AttnLRP,
    ],
)
def test_a_decoder_at_a_token_of_its_text(method: Any) -> None:
    explained = llama()
    explainer = method(explained.model)
    captured = explainer.capture(explained.inputs, explained.target)
    for inputs, target in ((explained.inputs, (6, 9)), (other_inputs(explained), [(6, 1), (6, 2)])):
        expected = explainer.attribute(inputs, for_each(target, samples=2))
        # Of several indices the method picks each sample's score by itself, which rounds otherwise.
        torch.testing.assert_close(captured(inputs, target), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_each_method(name: str) -> None:
    explainer = getattr(captum_transformer, name)(classifier(blocks=2))
    captured = explainer.capture(values(), 1)
    for seed in range(1, 3):
        assert_same(captured(values(seed), seed), explainer.attribute(values(seed), [seed] * 3))


@pytest.mark.parametrize("method", [TransformerAttribution, AttnLRP])
@pytest.mark.parametrize(
    ("captured_with", "called_with"),
    [
        (1, [3, [0, 2, 4]]),
        ([0, 1, 2], [torch.tensor([4, 3, 2])]),
        (torch.tensor([0, 1, 2]), [torch.tensor(3)]),
        (
            Contrast(1, rather_than=2),
            [
                Contrast([0, 1, 2], rather_than=4),
                [Contrast(n, rather_than=4) for n in range(3)],
            ],
        ),
    ],
)
def test_targets_in_any_form(method: Any, captured_with: Any, called_with: list[Any]) -> None:
    explainer = method(classifier())
    captured = explainer.capture(values(), captured_with)
    for target in called_with:
        expected = explainer.attribute(values(1), for_each(target))
        assert_same(captured(values(1), target), expected)


@pytest.mark.parametrize("method", [TransformerAttribution, AttnLRP])
def test_tuples_of_indices(method: Any) -> None:
    explainer = method(classifier())
    found = explainer.capture(values(), (1,))(values(1), (2,))
    # The method picks each sample's score by itself then, which rounds otherwise.
    torch.testing.assert_close(found, explainer.attribute(values(1), (2,)), rtol=1e-5, atol=1e-8)


def test_where_no_relevance_arrives() -> None:
    model = classifier()
    head = model.head.weight.detach().clone()
    torch.nn.init.zeros_(model.head.weight)
    explainer = GenericAttentionRelevance(model)
    captured = explainer.capture(values(), 1)
    for weight in (torch.zeros_like(head), head):
        with torch.no_grad():
            model.head.weight.copy_(weight)
        found = captured(values(1), 2)
        assert found.any() == weight.any()
        assert_same(found, explainer.attribute(values(1), 2))


def test_negative_indices() -> None:
    explainer = AttnLRP(classifier())
    captured = explainer.capture(values(), -1)
    for target in range(1, CLASSES + 1):
        assert_same(captured(values(1), -target), explainer.attribute(values(1), -target))


@pytest.mark.parametrize(
    "method", [pytest.param(GenericAttentionRelevance, marks=pytest.mark.slow), AttnLRP]
)
def test_tokens_and_several_targets(method: Any) -> None:
    explainer = method(classifier())
    by_token = explainer.capture(values(), 1, of="attribute_tokens")
    assert_same(by_token(values(1), 3), explainer.attribute_tokens(values(1), [3] * 3))
    several = explainer.capture(values(), [1, Contrast(1, rather_than=2)], of="attribute_targets")
    targets = [[0, 2, 4], Contrast([3] * 3, rather_than=[0] * 3)]
    assert_same(several(values(1), targets), explainer.attribute_targets(values(1), targets))


def test_without_a_target_and_with_options() -> None:
    explainer = ConservativeLRP(classifier())
    captured = explainer.capture(values(), 1, return_convergence_delta=True, internal_batch_size=2)
    expected = explainer.attribute(
        values(1), 2, return_convergence_delta=True, internal_batch_size=2
    )
    assert_same(captured(values(1), 2), expected)
    model = classifier()
    explainer = AttnLRP(lambda x: model(x)[:, 0])
    captured = explainer.capture(values())
    assert_same(captured(values(1)), explainer.attribute(values(1)))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))]
)
def test_random_models_before_and_after_training_steps(seed: int) -> None:
    chance = random.Random(seed)
    model = drawn(seed)
    explainer = chance.choice(
        [TransformerAttribution, GenericAttentionRelevance, ConservativeLRP, AttnLRP]
    )(model)
    x = tokens(model)
    captured = explainer.capture(x, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        target = [chance.randrange(CLASSES_OF_GRAPHS) for _ in x]
        new = torch.randn(x.shape, generator=torch.Generator().manual_seed(step), dtype=x.dtype)
        assert_same(captured(new, target), explainer.attribute(new, target))
        optimizer.zero_grad()
        model(new).square().mean().backward()
        optimizer.step()
        for module in model.modules():
            if isinstance(module, Attention):
                module.maps.clear()  # which the model collects, and a graph would not


def test_nothing_of_the_callers_is_touched() -> None:
    model = classifier().train()
    x = values().requires_grad_()
    captured = AttnLRP(model).capture(x, 1)
    state = torch.get_rng_state()
    captured(x, torch.tensor(CLASSES - 1))
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_any_mode(mode: Any) -> None:
    explainer = AttnLRP(classifier())
    expected = explainer.attribute(values(1), [1] * 3)
    with mode():
        captured = explainer.capture(values(), 1)
        found = captured(values(1), 1)
    assert not found.requires_grad
    assert not found.is_inference()
    assert_same(found, expected)
    assert_same(captured(values(1), 1), expected)
