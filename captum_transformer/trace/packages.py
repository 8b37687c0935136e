"""Linear layers that packages run by kernels or custom functions of their own.

They are described as anyone may describe others. A package that is not imported is not asked for.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.described import describe_function, describe_linear
from captum_transformer.trace.kinds import Kind


def _torch() -> None:
    """Layers that ``torch.ao.quantization.quantize_dynamic`` makes."""
    for name in ("linear_dynamic", "linear_dynamic_fp16"):
        describe_linear(
            getattr(torch.ops.quantized, name),
            "input packed reduce_range",
            weight=lambda _, packed, **__: packed.unpack()[0].dequantize(),
            bias=lambda _, packed, **__: packed.unpack()[1],
        )


def _bitsandbytes() -> None:
    functional = sys.modules["bitsandbytes.functional"]
    functions = sys.modules["bitsandbytes.autograd._functions"]

    def four_bit(_: None, packed: Tensor, __: Any, ___: Any, state: Any) -> Any:
        return functional.dequantize_4bit(packed.view(-1, 1), state)

    def eight_bit(_: None, __: Any, ___: Any, ____: Any, state: Any) -> Any:
        # It has them once the layer has run, if that is what quantises them.
        return state.CB * (state.SCB / 127).unsqueeze(1)

    # Not every version has all of them.
    for name, weight in (("MatMul4Bit", four_bit), ("MatMul8bitLt", eight_bit)):
        if hasattr(functions, name):
            arguments = "input packed out bias state"
            describe_linear(getattr(functions, name), arguments, weight=weight)
    if hasattr(torch.ops.bitsandbytes, "gemv_4bit"):
        # What weights that are packed for a CPU are, only the kernel knows.
        kernel = torch.ops.bitsandbytes.gemv_4bit.default
        describe_linear(kernel, "input packed size absmax code blocksize")


def _bitnet() -> None:
    """Activations that Transformers rounds with the derivative of what they were."""
    rounded = sys.modules["transformers.integrations.bitnet"].ActQuant
    describe_function(rounded, "input", Kind.COPY)


_PACKAGES: dict[str, Callable[[], None]] = {
    "torch": _torch,
    "bitsandbytes": _bitsandbytes,
    "transformers.integrations.bitnet": _bitnet,
}


def describe_packages() -> None:
    """Describes the packages that have been imported since it was last called."""
    for name in [name for name in _PACKAGES if name in sys.modules]:
        _PACKAGES.pop(name)()
