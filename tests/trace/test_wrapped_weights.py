"""Weights that are wrapped or quantised have the map of their values."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tests.trace.packed_layers import METHODS, NAMES, Model, every_method, same_maps, tokens


@pytest.fixture
def x():
    return tokens()


class Rounding(Tensor):
    """Weights whose product rounds the activations, as in torchao."""

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
    # Activations are rounded as well, to eight bits, or on some processors to half precision. This
    # has a large effect if relevance is a difference.
    tolerance = 1e-2 if dtype == torch.float16 else 0.1 if "LRP" in method else 0.5
    found, expected = (METHODS[method](m).attribute(x, target=1) for m in (model, plain))
    assert (found - expected).norm() < tolerance * expected.norm()
