"""Linear layers whose kernels have no derivative, or that run inside custom Functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captum_transformer import ConservativeLRP, extend
from captum_transformer.errors import (
    InvalidRuleError,
    UnseenOperationError,
    UnsupportedOperationError,
)
from tests.trace.packed_layers import (
    METHODS,
    Model,
    every_method,
    looked_up,
    multiplied,
    packed,
    same_maps,
    tokens,
    weight,
)


@pytest.fixture
def x():
    return tokens()


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


class Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, packed, scale, bias=None):
        ctx.save_for_backward(packed, scale)
        return multiplied(x, packed, scale, bias)

    @staticmethod
    def backward(ctx, gradient):
        packed, scale = ctx.saved_tensors
        back = (gradient * scale) @ packed.to(gradient.dtype).t()
        return back, None, None, gradient.sum((*range(gradient.ndim - 1),))


@pytest.fixture(scope="module")
def kernels():
    library = torch.library.Library("captum_transformer_known", "DEF")
    library.define("linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias) -> Tensor")
    library.impl("linear", lambda x, *args: multiplied(x.detach(), *args), "CPU")
    library.define("negative(Tensor x) -> Tensor")
    library.impl("negative", lambda x: -x.detach(), "CPU")
    yield torch.ops.captum_transformer_known
    library._destroy()


@torch.library.custom_op("captum_transformer_custom::linear", mutates_args=())
def custom_kernel(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return multiplied(x, packed, scale, bias)


def in_two_steps(kernels):
    """As in some packages: the bias is added in place to the output of the kernel."""

    def run(x, packed, scale, bias):
        result = kernels.linear(x, packed, scale, None)
        result += bias
        return result

    return run


@every_method
@pytest.mark.parametrize("reads", [None, weight], ids=["from the identity", "by a function"])
def test_a_described_custom_function_is_a_linear_layer(method, reads, x):
    model, plain = packed(Int8Linear.apply)
    # Calls that look up `apply` are seen, calls of an earlier reference to it are not.
    model_that_looks = packed(looked_up(Int8Linear))[0]
    with extend.describe_linear(Int8Linear, "input packed scale bias", weight=reads):
        same_maps(method, model_that_looks, plain, x)
        with pytest.raises(UnseenOperationError, match="Int8Linear"):
            METHODS[method](model).attribute(x, target=1)
    assert "apply" not in vars(Int8Linear)
    with pytest.raises(UnseenOperationError, match="Int8Linear"):
        METHODS[method](model_that_looks).attribute(x, target=1)


@every_method
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("reads", [None, weight], ids=["from the identity", "by a function"])
def test_a_described_kernel_has_the_derivative_of_a_linear_layer(method, reads, steps, kernels, x):
    if steps == 2 and method == "positive gamma":
        pytest.skip("only biases of a layer are favoured if they are positive")
    model, plain = packed(kernels.linear if steps == 1 else in_two_steps(kernels))
    with extend.describe_linear(kernels.linear, "input packed scale bias", weight=reads):
        same_maps(method, model, plain, x)
    with pytest.raises(UnsupportedOperationError, match=r"captum_transformer_known\.linear"):
        METHODS[method](model).attribute(x, target=1)


@every_method
def test_a_bias_may_be_read_from_packed_arguments(method, kernels, x):
    model, plain = packed(kernels.linear)
    with extend.describe_linear(
        kernels.linear, "input packed scale more", bias=lambda x, packed, scale, more: more
    ):
        same_maps(method, model, plain, x)


def test_a_kernel_whose_derivative_raises(x):
    model, plain = packed(custom_kernel)
    kernel = torch.ops.captum_transformer_custom.linear
    with extend.describe_linear(kernel, "input packed scale bias"):
        same_maps("AttnLRP", model, plain, x)


@every_method
@pytest.mark.parametrize("runs", [Int8Linear, custom_kernel], ids=["Function", "kernel"])
def test_activations_may_be_checkpointed(method, runs, x):
    model, plain = packed(looked_up(runs) if runs is Int8Linear else runs)
    for part in (model, plain):
        part.layers = nn.ModuleList(Checkpointed(layer) for layer in part.layers)
    described = Int8Linear if runs is Int8Linear else torch.ops.captum_transformer_custom.linear
    with extend.describe_linear(described, "input packed scale bias"):
        same_maps(method, model, plain, x)


def test_a_function_that_is_not_linear_is_refused(x):
    class Gated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, packed, scale, bias):
            ctx.save_for_backward(x)
            return multiplied(x, packed, scale, bias).relu()

    model, _ = packed(looked_up(Gated))
    with (
        extend.describe_linear(Gated, "input packed scale bias", weight=weight),
        pytest.raises(InvalidRuleError, match=r"`Gated` is described as a linear.*% off"),
    ):
        ConservativeLRP(model).attribute(x, target=1)


def test_descriptions_that_are_refused(kernels):
    with pytest.raises(ValueError, match="`input`; got 'x packed'"):
        extend.describe_linear(Int8Linear, "x packed")
    with pytest.raises(ValueError, match=r"a kernel or an `autograd\.Function`"):
        extend.describe_linear(multiplied, "input packed scale bias")
    with (
        extend.describe_linear(Int8Linear, "input packed scale bias"),
        pytest.raises(ValueError, match="`Int8Linear` is described already"),
    ):
        extend.describe_function(Int8Linear, "input packed scale bias", extend.Kind.PRODUCT)


def test_custom_functions_are_unchanged_outside_of_explanations(x):
    model, plain = packed(looked_up(Int8Linear))
    with extend.describe_linear(Int8Linear, "input packed scale bias"):
        apply = Int8Linear.apply
        torch.testing.assert_close(model(x), plain(x))
        assert Int8Linear.apply == apply
        seen = []

        def forward(x):
            seen.append(Int8Linear.apply)
            return model(x)

        ConservativeLRP(forward).attribute(x, target=1)
        assert seen != [apply]
        assert Int8Linear.apply == apply


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Through(Model):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return super().forward(self.function(x))


@every_method
def test_custom_functions_of_other_kinds(method, x):
    with extend.describe_function(Doubled, "input", extend.Kind.HOMOGENEOUS):
        model, plain = (
            Through(looked_up(Doubled)),
            Through(lambda x: F.leaky_relu(2 * x, 1.0)),
        )
        same_maps(method, model, plain, x)


def test_kernels_of_other_kinds_need_a_derivative(kernels, x):
    described = extend.describe_function(kernels.negative, "input", extend.Kind.HOMOGENEOUS)
    with described, pytest.raises(UnsupportedOperationError, match="has no derivative"):
        ConservativeLRP(Through(kernels.negative)).attribute(x, target=1)
