"""Linear layers whose kernels have no derivative, or that run inside custom Functions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    PartialLRP,
    TransformerAttribution,
    extend,
)
from captum_transformer.errors import (
    InvalidRuleError,
    UnseenOperationError,
    UnsupportedOperationError,
)

METHODS = {
    "ConservativeLRP": ConservativeLRP,
    "positive gamma": lambda model: ConservativeLRP(model, gamma=0.2),
    "AttnLRP": AttnLRP,
    "gamma": lambda model: AttnLRP(model, gamma=0.2),
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
    "full": lambda model: TransformerAttribution(model, propagate_to_input=True),
    "PartialLRP": PartialLRP,
    "AttentionRollout": AttentionRollout,
}
every_method = pytest.mark.parametrize("method", METHODS)


NAMES = ("queries", "keys", "values", "project", "up", "down", "head")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values, self.project = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))

    def forward(self, x):
        y = self.norms[0](x)
        heads = (
            part(y).unflatten(-1, (2, 4)).transpose(1, 2)
            for part in (self.queries, self.keys, self.values)
        )
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.project(attended)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


class Packed(nn.Module):
    """A linear layer with eight-bit weights, and something that runs it."""

    def __init__(self, layer, run):
        super().__init__()
        scale = layer.weight.detach().abs().amax(1) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (layer.weight / scale[:, None]).round().to(torch.int8).t())
        self.bias, self.run = layer.bias, run

    def forward(self, x):
        return self.run(x, self.packed, self.scale, self.bias)


def packed(run):
    """A model whose layers are run by a function, and the same one with their numbers."""
    model = Model()
    plain = copy.deepcopy(model)
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        for name in NAMES:
            if isinstance(getattr(one, name, None), nn.Linear):
                layer = Packed(getattr(one, name), run)
                numbers = layer.packed.t() * layer.scale[:, None]
                getattr(other, name).weight.data = numbers.to(torch.float64)
                setattr(one, name, layer)
    return model, plain


@pytest.fixture
def x():
    return torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def same_maps(method, model, plain, x, **tolerances):
    torch.testing.assert_close(model(x), plain(x), **tolerances)
    found, expected = (METHODS[method](m).attribute(x, target=1) for m in (model, plain))
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected, **tolerances)


def multiplied(x, packed, scale, bias):
    result = (x @ packed.to(x.dtype)) * scale
    return result if bias is None else result + bias


def looked_up(function):
    """What looks `apply` up each time that it is run, as models do."""

    def run(*args):
        return function.apply(*args)

    return run


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
    """As some packages do: the bias is added where the kernel has written."""

    def run(x, packed, scale, bias):
        result = kernels.linear(x, packed, scale, None)
        result += bias
        return result

    return run


def weight(_, packed, scale, *__):
    return packed.t() * scale[:, None]


@every_method
@pytest.mark.parametrize("reads", [None, weight], ids=["off the identity", "by a function"])
def test_a_custom_function_that_is_described_is_a_linear_layer(method, reads, x):
    model, plain = packed(Int8Linear.apply)
    # What looks `apply` up when it runs is seen, what has taken it before is not.
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
@pytest.mark.parametrize("reads", [None, weight], ids=["off the identity", "by a function"])
def test_a_kernel_without_a_derivative_that_is_described_has_that_of_the_layer(
    method, reads, steps, kernels, x
):
    if steps == 2 and method == "positive gamma":
        pytest.skip("it favours positive biases where they are the layer's own")
    model, plain = packed(kernels.linear if steps == 1 else in_two_steps(kernels))
    with extend.describe_linear(kernels.linear, "input packed scale bias", weight=reads):
        same_maps(method, model, plain, x)
    with pytest.raises(UnsupportedOperationError, match=r"captum_transformer_known\.linear"):
        METHODS[method](model).attribute(x, target=1)


@every_method
def test_a_bias_may_be_read_from_what_is_packed(method, kernels, x):
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


def test_what_is_no_linear_layer_is_not_taken_for_one(x):
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


def test_descriptions_that_say_too_little_or_that_nothing_would_follow(kernels):
    with pytest.raises(ValueError, match="`input`; got 'x packed'"):
        extend.describe_linear(Int8Linear, "x packed")
    with pytest.raises(ValueError, match=r"a kernel or an `autograd\.Function`"):
        extend.describe_linear(multiplied, "input packed scale bias")
    with (
        extend.describe_linear(Int8Linear, "input packed scale bias"),
        pytest.raises(ValueError, match="`Int8Linear` is described already"),
    ):
        extend.describe_function(Int8Linear, "input packed scale bias", extend.Kind.PRODUCT)


def test_custom_functions_do_outside_of_explanations_what_they_did(x):
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


# --- other kinds


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


# --- tensors that wrap weights


class Rounding(Tensor):
    """Weights whose product rounds what it multiplies them with, as torchao's with activations."""

    @staticmethod
    def __new__(cls, numbers):
        new = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype)
        new.numbers = numbers
        return new

    def dequantize(self):
        return self.numbers

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = args
            rounded = (x.detach() * 2**24).round() / 2**24
            return F.linear(rounded, weight.numbers, bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers)
        plain = tree_map(lambda a: a.numbers if isinstance(a, cls) else a, args)
        return func(*plain, **(kwargs or {}))


@every_method
@pytest.mark.parametrize("trained", [True, False], ids=["trained biases", "frozen"])
def test_wrapped_weights_whose_kernel_rounds_activations(method, trained, x):
    model = Model()
    for module in model.modules():
        for name in NAMES:
            if isinstance(layer := getattr(module, name, None), nn.Linear):
                layer.weight = nn.Parameter(Rounding(layer.weight.detach()), requires_grad=False)
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=trained and parameter.requires_grad)
    assert (model(x) - Model()(x)).abs().max() > 0
    same_maps(method, model, Model(), x, atol=1e-5, rtol=1e-4)
    if hasattr(METHODS[method](model), "account"):
        found, expected = (
            METHODS[method](m).account(x, target=1).shares() for m in (model, Model())
        )
        assert found == pytest.approx(expected, abs=1e-4)


@every_method
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_dynamic_quantisation_of_torch(method, dtype, x):
    plain, x = Model().float(), x.float()
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=dtype)
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = model.get_submodule(name).weight().dequantize().float()
    # Activations are rounded as well, to eight bits, or on some processors to half precision. Where
    # relevance is a difference, that is much.
    tolerance = 1e-2 if dtype == torch.float16 else 0.1 if "LRP" in method else 0.5
    found, expected = (METHODS[method](m).attribute(x, target=1) for m in (model, plain))
    assert (found - expected).norm() < tolerance * expected.norm()
