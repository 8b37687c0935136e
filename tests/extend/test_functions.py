"""Functions that a user describes are operations like any other."""

import pytest
import torch
from torch import Tensor

from captum_transformer import extend
from captum_transformer.calling.arguments import Arguments
from captum_transformer.errors import UnseenOperationError, UnsupportedOperationError
from captum_transformer.trace import traced_forward
from tests.extend.models import Model, methods, tokens


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Weighed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        _, weight = ctx.saved_tensors
        return gradient @ weight, None


@extend.operation("input", extend.Kind.ENTRYWISE)
def cubed(x: Tensor) -> Tensor:
    return Cubed.apply(x)


@extend.operation("input weight", extend.Kind.PRODUCT)
def weighed(x: Tensor, weight: Tensor) -> Tensor:
    return Weighed.apply(x, weight)


@methods
def test_a_described_function_equals_a_known_one(method):
    found = method(Model(cubed, weighed)).attribute(tokens(), 1)
    torch.testing.assert_close(found, method(Model(lambda x: x**3)).attribute(tokens(), 1))


def test_the_name_of_a_described_function_does_not_matter():
    @extend.operation("input exponent", extend.Kind.HOMOGENEOUS)
    def pow(x, exponent):  # noqa: A001 - torch's has another kind for such exponents
        return x.abs() ** -exponent

    with traced_forward(lambda x: pow(x, -1), Arguments(torch.ones(1, 2))) as forward:
        assert [operation.kind for operation in forward.tape.operations] == [
            extend.Kind.HOMOGENEOUS
        ]


@methods
def test_a_function_without_a_description_is_refused(method):
    with pytest.raises(UnseenOperationError, match="Cubed"):
        method(Model(Cubed.apply)).attribute(tokens(), 1)


def test_a_described_function_is_unchanged_outside_of_explanations():
    x = tokens().requires_grad_()
    (gradient,) = torch.autograd.grad(cubed(x).sum(), x)
    torch.testing.assert_close(gradient, 3 * x.detach() ** 2)
    assert cubed.__name__ == "cubed"


def rare(x: Tensor) -> Tensor:
    return torch.atan2(x, torch.ones_like(x))


@methods
def test_a_described_torch_function_has_a_rule_in_all_passes(method):
    expected = method(Model(extend.operation("input", extend.Kind.ENTRYWISE)(rare)))
    with extend.describe_function(torch.atan2, "input other", extend.Kind.ENTRYWISE):
        found = method(Model(rare)).attribute(tokens(), 1)
    torch.testing.assert_close(found, expected.attribute(tokens(), 1))


@methods
def test_a_description_ends_with_its_block(method):
    with pytest.raises(UnsupportedOperationError, match="`atan2`"):
        method(Model(rare)).attribute(tokens(), 1)


def test_known_functions_are_not_described_again():
    with pytest.raises(ValueError, match="`relu` is in the table already, as HOMOGENEOUS"):
        extend.describe_function(torch.relu, "input", extend.Kind.MOVE)
    with pytest.raises(ValueError, match="`lerp` is already supported"):
        extend.describe_function(torch.lerp, "input other weight", extend.Kind.ENTRYWISE)
