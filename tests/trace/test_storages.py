"""Tensors that wrap others: quantised weights, and inputs with metadata."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.storages import dense, memory_of

METHODS = {
    "ConservativeLRP": ConservativeLRP,
    "gamma": lambda model: ConservativeLRP(model, gamma=0.2),
    "AttnLRP": AttnLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
    "full": lambda model: TransformerAttribution(model, propagate_to_input=True),
    "PartialLRP": PartialLRP,
    "RawAttention": RawAttention,
    "AttentionRollout": AttentionRollout,
}


class Quantised(Tensor):
    """Eight-bit numbers and a scale for each row, without a storage, as torchao's tensors are."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    @classmethod
    def of(cls, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers, args[0].scale)
        plain = tree_map(lambda a: a.numbers * a.scale if isinstance(a, cls) else a, args)
        return func(*plain, **(kwargs or {}))


class Dequantisable(Quantised):
    def dequantize(self):
        return self.numbers * self.scale


class Named(Tensor):
    """A tensor with metadata that it hands on, as MONAI's are."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Named):
            first = args[0] if args and isinstance(args[0], Named) else None
            result.note = getattr(first, "note", None)
        return result


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def quantised(kind):
    """A model with quantised linear layers, and the same one with their numbers."""
    model = Model().double().eval()
    plain = copy.deepcopy(model)
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        if isinstance(one, nn.Linear):
            weight = kind.of(one.weight.detach())
            other.weight.data = weight.numbers * weight.scale
            one.weight = nn.Parameter(weight, requires_grad=False)
    return model, plain


@pytest.fixture
def x():
    return torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_give_what_their_numbers_give(method, x):
    model, plain = quantised(Dequantisable)
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(
        METHODS[method](model).attribute(x, target=1), METHODS[method](plain).attribute(x, target=1)
    )


def test_numbers_that_cannot_be_read_are_refused_by_the_rules_that_need_them(x):
    model, plain = quantised(Quantised)
    torch.testing.assert_close(
        ConservativeLRP(model).attribute(x, target=1), ConservativeLRP(plain).attribute(x, target=1)
    )
    with pytest.raises(UnsupportedOperationError, match=r"test_storages\.Quantised.*`dequantize`"):
        METHODS["full"](model).attribute(x, target=1)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_with_metadata_give_what_plain_ones_give(method, x):
    model = Model().double().eval()
    named = x.as_subclass(Named)
    named.note = "scan"
    found = METHODS[method](model).attribute(named, target=1)
    expected = METHODS[method](model).attribute(x, target=1)
    torch.testing.assert_close(found.as_subclass(Tensor), expected)


def test_storages_are_distinguished():
    weight = torch.randn(4, 4)
    one, other = Quantised.of(weight), Quantised.of(weight)
    assert set(memory_of(one)) == set(memory_of(one.detach()))
    assert set(memory_of(one)).isdisjoint(memory_of(other))
    assert memory_of(weight[1]) == memory_of(weight.t())
    sparse = weight.to_sparse()
    assert memory_of(sparse) == (id(sparse),)


def test_plain_numbers_are_the_same_object():
    weight = nn.Parameter(torch.randn(2))
    assert dense(weight) is weight
    assert type(dense(weight.as_subclass(Named))) is Tensor


# --- operations without a derivative


class Through(Model):
    """Sends its tokens through a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.double().eval()

    def forward(self, x):
        return super().forward(self.function(self.embed(x)))


@pytest.fixture(scope="module")
def library():
    """Kernels that autograd was told nothing of, or that nothing is known of."""
    kernels = torch.library.Library("captum_transformer_tests", "DEF")
    for name in ("rms_norm", "written"):
        kernels.define(f"{name}(Tensor x) -> Tensor")
    kernels.impl("rms_norm", lambda x: x * 2, "CompositeImplicitAutograd")
    kernels.impl("written", lambda x: x.detach() * 2, "CPU")
    yield torch.ops.captum_transformer_tests
    kernels._destroy()


def test_kernels_without_a_derivative_are_refused(library, x):
    for kernel in (library.written, library.written.default):
        with pytest.raises(UnsupportedOperationError, match="has no derivative of"):
            ConservativeLRP(Through(kernel)).attribute(x, target=1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8).dequantize().double(),
        lambda x: torch.nextafter(x, x + 1),
        lambda x: torch.special.gammainc(x.exp(), x.exp()),  # recorded, but autograd can't
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tensors_without_a_derivative_are_no_constants(function, x):
    for method in METHODS.values():
        with pytest.raises(UnsupportedOperationError, match=r"per_tensor|nextafter|gamma"):
            method(Through(lambda x: x + function(x))).attribute(x, target=1)


def test_kernels_of_other_libraries_are_not_taken_for_functions_of_torch(library, x):
    with pytest.raises(UnsupportedOperationError, match="rms_norm"):
        METHODS["full"](Through(library.rms_norm.default)).attribute(x, target=1)


def test_kernels_of_torch_are_its_functions(x):
    aten = torch.ops.aten
    weight = torch.randn(8, 8, dtype=x.dtype)

    def kernels(x):
        x = aten.linear.default(x, weight)
        x = aten.add_.Tensor(aten.mul.Tensor(x, 2), x, alpha=3)
        return aten.index_select.default(x, 1, torch.tensor([4, 3, 2]))

    def functions(x):
        x = torch.nn.functional.linear(x, weight)
        return (x * 2).add_(x, alpha=3)[:, [4, 3, 2]]

    for method in METHODS.values():
        torch.testing.assert_close(
            method(Through(kernels)).attribute(x, target=1),
            method(Through(functions)).attribute(x, target=1),
        )


@pytest.mark.parametrize("kernel", [lambda x: torch.ops.aten.index(x, [None, torch.arange(3)])])
def test_kernels_that_are_not_known_are_refused(kernel, x):
    with pytest.raises(UnsupportedOperationError, match=r"aten\.index"):
        METHODS["full"](Through(kernel)).attribute(x, target=1)
