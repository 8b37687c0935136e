"""Weights quantised by packages have the map of their values, as in `test_wrapped_weights.py`."""

import copy

import pytest
import torch
import transformers
from torch import nn

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)

# How much of a map rounding may change: that of float32, or of activations to 8 bits. What is a
# difference of large numbers, as TransformerAttribution's additions of either sign, changes more.
METHODS = {
    "ConservativeLRP": (ConservativeLRP, 1e-5, 0.1),
    "AttnLRP": (AttnLRP, 1e-5, 0.1),
    "gamma": (lambda model: AttnLRP(model, gamma=0.25), 1e-5, 0.1),
    "GIM": (GIM, 1e-5, 0.1),
    "GenericAttentionRelevance": (GenericAttentionRelevance, 1e-5, 0.1),
    "TransformerAttribution": (TransformerAttribution, 1e-3, 0.5),
    "AttentionRollout": (AttentionRollout, 1e-5, 0.1),
}
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"]
LINEAR += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
IDS = torch.tensor([[3, 14, 15, 92, 6], [5, 35, 8, 9, 79]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=96,
        attention_bias=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def layers(model):
    return [f"model.layers.{n}.{name}" for n in range(2) for name in LINEAR]


def same_maps(method, model, plain, *, rounds_activations=False, target=(4, 7)):
    make, exact, rounded = METHODS[method]
    ids = IDS.to(model.device)
    found, expected = (make(m).attribute(ids, target=target) for m in (model, plain))
    difference = (found - expected).norm() / expected.norm()
    assert difference < (rounded if rounds_activations else exact)


every_method = pytest.mark.parametrize("method", METHODS)


@every_method
@pytest.mark.parametrize("kind", ["int8", "int4", "float8", "int8 with int8 activations"])
def test_torchao(kind, method, model):
    quantization = pytest.importorskip("torchao.quantization")
    config = {
        "int8": quantization.Int8WeightOnlyConfig,
        "int4": lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.PerGroup(32)
        ),
        "float8": quantization.Float8WeightOnlyConfig,
        "int8 with int8 activations": quantization.Int8DynamicActivationInt8WeightConfig,
    }[kind]()
    plain = copy.deepcopy(model)
    quantization.quantize_(model, config)
    for name in [*layers(model), "lm_head"]:
        weight = model.get_submodule(name).weight.dequantize()
        plain.get_submodule(name).weight = nn.Parameter(weight.detach())
    same_maps(method, model, plain, rounds_activations="activations" in kind)


@every_method
@pytest.mark.parametrize(
    "kind", ["nf4", "fp4", "nf4 twice", "nf4 after a run", "int8", "int8 with outliers"]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes(kind, dtype, device, method, model):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plain = copy.deepcopy(model.to(dtype))
    for name in layers(model):
        layer = model.get_submodule(name)
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        if "int8" in kind:
            threshold = 6.0 if "outliers" in kind else 0.0
            new = bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=threshold)
        else:
            new = bitsandbytes.nn.Linear4bit(
                *sizes,
                compute_dtype=dtype,
                quant_type=kind[:3],
                compress_statistics="twice" in kind,
            )
        new.load_state_dict(layer.state_dict())
        new = new.to(device, dtype)
        if "int8" in kind:
            numbers = new.weight.data.float() * (new.weight.SCB / 127).unsqueeze(1)
        else:
            numbers = bitsandbytes.functional.dequantize_4bit(
                new.weight.data, new.weight.quant_state
            )
        plain.get_submodule(name).weight = nn.Parameter(numbers.to("cpu", dtype))
        model.set_submodule(name, new)
    model.to(device)
    if "after a run" in kind:
        # On CPUs the weights are packed in another way from then on.
        with torch.no_grad():
            model(IDS.to(device))
    before = [parameter.clone() for parameter in model.parameters()]
    same_maps(method, model, plain.to(device), rounds_activations=True)
    assert all(map(torch.equal, model.parameters(), before))
    with torch.no_grad():
        scores, expected = (m(IDS.to(device)).logits.float() for m in (model, plain))
    assert (scores - expected).norm() < 0.1 * expected.norm()


@pytest.mark.slow
@every_method
def test_bitnet_of_transformers(method, model):
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    plain = copy.deepcopy(model)
    for name in layers(model):
        layer = model.get_submodule(name)
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        new = bitnet.AutoBitLinear(*sizes, online_quant=True)
        new.load_state_dict(layer.state_dict())
        model.set_submodule(name, new)
        numbers = bitnet.WeightQuant.apply(layer.weight).detach()
        plain.get_submodule(name).weight = nn.Parameter(numbers)
    same_maps(method, model, plain, rounds_activations=True)


class Packed(nn.Module):
    """Four-bit weights, eight to a number, with scales and zeros by groups, as GPTQ stores them."""

    def __init__(self, layer, group=32):
        super().__init__()
        outputs, inputs = layer.weight.shape
        groups = layer.weight.detach().view(outputs, -1, group)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scales = (high - low) / 15
        zeros = (-low / scales).round()
        codes = (groups / scales + zeros).round().clamp(0, 15).int().view(outputs, inputs).t()
        packed = sum(codes[place::8] << 4 * place for place in range(8))
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales.squeeze(-1).t())
        self.register_buffer("zeros", zeros.squeeze(-1).t())
        self.register_buffer("groups", torch.arange(inputs) // group)
        self.bias = layer.bias

    def numbers(self):
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        codes = (self.packed[:, None] >> shifts[:, None] & 15).flatten(0, 1)
        return self.scales[self.groups] * (codes - self.zeros[self.groups])

    def forward(self, x):
        return torch.matmul(x, self.numbers()) + self.bias


@every_method
def test_weights_that_are_unpacked_by_torch_functions(method, model):
    plain = copy.deepcopy(model)
    for name in layers(model):
        layer = model.get_submodule(name)
        if layer.bias is None:
            continue
        model.set_submodule(name, new := Packed(layer))
        plain.get_submodule(name).weight = nn.Parameter(new.numbers().t())
    same_maps(method, model, plain)


@every_method
@pytest.mark.parametrize("kind", ["qint8", "qint4", "qfloat8"])
def test_quanto(kind, method, model):
    quanto = pytest.importorskip("optimum.quanto")
    plain = copy.deepcopy(model)
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    for name in [*layers(model), "lm_head"]:
        weight = model.get_submodule(name).weight.dequantize()
        plain.get_submodule(name).weight = nn.Parameter(weight.detach())
    same_maps(method, model, plain)
