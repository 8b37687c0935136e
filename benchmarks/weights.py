"""How far maps of models with quantised weights and adapters are from those of plain weights.

A small Llama-like model with random weights. Each map is compared with that of the model that has
the numbers that the quantised weights stand for, or the adapter merged into them: the norm of the
difference over the norm of the latter.

Run with ``python -m benchmarks.weights``; a package that is not installed is left out by name.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    PartialLRP,
    TransformerAttribution,
)

METHODS: dict[str, Callable[[Any], Any]] = {
    "rollout": AttentionRollout,
    "AttnLRP": AttnLRP,
    "ConservativeLRP": ConservativeLRP,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
}
# These are no gradients: they weigh the terms of layers, which an adapter changes.
OF_ADAPTERS: dict[str, Callable[[Any], Any]] = {
    **METHODS,
    "GIM": GIM,
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
    "PartialLRP": PartialLRP,
    "AttnLRP(gamma=0.25)": lambda model: AttnLRP(model, gamma=0.25),
    "ConservativeLRP(gamma=0.25)": lambda model: ConservativeLRP(model, gamma=0.25),
}
IDS = torch.tensor([[3, 14, 15, 92, 6], [5, 35, 8, 9, 79]])
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"]
LINEAR += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def llama() -> Any:
    """The model."""
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
            nn.init.normal_(parameter, std=0.15)
    return model


def linear_layers(model: Any) -> list[str]:
    """The names of the layers' linear maps."""
    return [f"model.layers.{n}.{name}" for n in range(len(model.model.layers)) for name in LINEAR]


def torchao(config: str) -> tuple[Any, Any]:
    """The model with weights by torchao, and with their numbers."""
    import torchao.quantization as quantization

    model = llama()
    plain = copy.deepcopy(model)
    quantization.quantize_(model, getattr(quantization, config)())
    for name in [*linear_layers(model), "lm_head"]:
        numbers = model.get_submodule(name).weight.dequantize()
        plain.get_submodule(name).weight = nn.Parameter(numbers.detach())
    return model, plain


def bitsandbytes(bits: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model with weights by bitsandbytes, and with their numbers."""
    import bitsandbytes as package

    model = llama().to(dtype)
    plain = copy.deepcopy(model)
    for name in linear_layers(model):
        layer = model.get_submodule(name)
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        if bits == 8:
            new = package.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=0.0)
        else:
            new = package.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
        new.load_state_dict(layer.state_dict())
        new = new.to("cpu", dtype)
        if bits == 8:
            numbers = new.weight.data.float() * (new.weight.SCB / 127).unsqueeze(1)
        else:
            numbers = package.functional.dequantize_4bit(new.weight.data, new.weight.quant_state)
        plain.get_submodule(name).weight = nn.Parameter(numbers.to(dtype))
        model.set_submodule(name, new)
    return model, plain


def dynamic() -> tuple[Any, Any]:
    """The model with torch's own dynamically quantised layers, and with their numbers."""
    model = llama()
    plain = copy.deepcopy(model)
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    for name in [*linear_layers(plain), "lm_head"]:
        numbers = model.get_submodule(name).weight().dequantize()
        plain.get_submodule(name).weight = nn.Parameter(numbers)
    return model, plain


def adapter() -> tuple[Any, Any]:
    """The model with LoRA of a tenth of each weight's norm, and with that merged."""
    import peft

    config = peft.LoraConfig(r=4, target_modules=[name.split(".")[1] for name in LINEAR])
    model = peft.get_peft_model(llama(), config).eval()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            nn.init.normal_(up)
            size = (up @ down).norm() * module.scaling["default"]
            with torch.no_grad():
                up *= 0.1 * module.base_layer.weight.norm() / size
    return model, copy.deepcopy(model).merge_and_unload()


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "torchao int8, weights only": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao int8, int8 activations": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    "bitsandbytes 8-bit": lambda: bitsandbytes(8, torch.float32),
    "bitsandbytes nf4, in bfloat16 on a CPU": lambda: bitsandbytes(4, torch.bfloat16),
    "`quantize_dynamic`": dynamic,
}


def differences(model: Any, plain: Any, methods: dict[str, Callable[[Any], Any]]) -> list[float]:
    """Of the logits, and of the map of each method."""

    def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
        return float((found - expected).float().norm() / expected.float().norm())

    with torch.no_grad():
        result = [relative(model(IDS).logits, plain(IDS).logits)]
    for make in methods.values():
        found, expected = (make(one).attribute(IDS, target=(4, 7)) for one in (model, plain))
        result.append(relative(found, expected))
    return result


def main() -> None:
    """Prints two tables."""
    for kinds, methods in ((KINDS, METHODS), ({"LoRA": adapter}, OF_ADAPTERS)):
        print(f"| weights | logits | {' | '.join(methods)} |\n|---|" + "---|" * (len(methods) + 1))
        for name, make in kinds.items():
            try:
                model, plain = make()
            except ImportError as missing:
                print(f"| {name} | left out: {missing} |")
                continue
            found = differences(model, plain, methods)
            print(f"| {name} | " + " | ".join(f"{one:.2g}" for one in found) + " |")
        print()


if __name__ == "__main__":
    main()
