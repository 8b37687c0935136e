"""Custom Functions and hooks that replace a gradient are refused; other hooks change nothing."""

import pytest
import torch
from torch import Tensor, nn

from captum_transformer import AttnLRP, ConservativeLRP, GenericAttentionRelevance
from captum_transformer.errors import UnseenOperationError
from tests.trace.changed_tokens import (
    FUNCTIONS,
    METHODS,
    WIDTH,
    Changed,
    Reverse,
    ReverseItself,
    tokens,
)


@pytest.fixture
def x() -> Tensor:
    return tokens()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_custom_function_is_refused_whatever_it_returns(function, method, x):
    with pytest.raises(UnseenOperationError):
        method(Changed(function.apply)).attribute(x, target=1)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("of", [lambda x: x[:, 1:], lambda x: x.transpose(0, 1)])
def test_a_custom_function_of_a_view_is_refused(function, of, x):
    def change(x):
        function.apply(of(x))
        return x + 0 * of(x).sum() + function.apply(of(x)).sum()

    with pytest.raises(UnseenOperationError):
        ConservativeLRP(Changed(change)).attribute(x, target=1)


def test_custom_functions_within_hooks_are_refused(x):
    model = Changed()
    model.embed.register_forward_hook(lambda module, args, output: ReverseItself.apply(output))
    with pytest.raises(UnseenOperationError, match="ReverseItselfBackward"):
        GenericAttentionRelevance(model).attribute(x, target=1)


def test_a_custom_function_of_a_frozen_embedding_is_refused():
    class OnIds(Changed):
        def __init__(self):
            super().__init__(Reverse.apply)
            self.embed = nn.Embedding(10, WIDTH, dtype=torch.float64)

    model = OnIds().requires_grad_(False)
    with pytest.raises(UnseenOperationError, match="ReverseBackward"):
        ConservativeLRP(model).attribute(torch.randint(0, 10, (2, 5)), target=1)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_on_modules_and_tensors_change_nothing(method, x):
    hooked = Changed(lambda x: x.transpose(0, 1).transpose(0, 1))
    expected = method(hooked).attribute(x, target=1)
    for module in hooked.modules():
        module.register_full_backward_pre_hook(lambda *args: None)
        module.register_full_backward_hook(lambda *args: None)
    hooked.embed.register_forward_hook(
        lambda module, args, output: output.register_hook(lambda gradient: None) and None
    )
    torch.testing.assert_close(method(hooked).attribute(x, target=1), expected)


@pytest.mark.parametrize(
    "register",
    [
        lambda module: module.register_full_backward_hook(lambda _, before, __: (-before[0],)),
        lambda module: module.register_full_backward_pre_hook(lambda _, after: (-after[0],)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_hooks_that_change_gradients_do_not_run(method, register, x):
    """Such hooks are for training, as in gradient reversal or clipping."""
    hooked = Changed(lambda x: x)
    expected = method(hooked).attribute(x, target=1)
    register(hooked.embed)
    torch.testing.assert_close(method(hooked).attribute(x, target=1), expected)
    training = x.clone().requires_grad_()
    (reversed_gradient,) = torch.autograd.grad(hooked(training)[:, 1].sum(), training)
    hooked.embed._backward_hooks.clear()
    hooked.embed._backward_pre_hooks.clear()
    (gradient,) = torch.autograd.grad(hooked(training)[:, 1].sum(), training)
    torch.testing.assert_close(reversed_gradient, -gradient)


@pytest.mark.parametrize("method", [ConservativeLRP, AttnLRP])
def test_a_hook_on_a_tensor_that_replaces_its_gradient_is_refused(method, x):
    def reverse(x):
        x.register_hook(lambda gradient: -gradient)
        return x

    with pytest.raises(UnseenOperationError, match="hook on a tensor that replaces its gradient"):
        method(Changed(reverse)).attribute(x, target=1)
