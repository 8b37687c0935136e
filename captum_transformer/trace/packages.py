"""Linear layers that packages run by kernels or custom functions of their own.

They are described as anyone may describe others. A package that is not imported is not asked for.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.described import describe_linear


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

    describe_linear(functions.MatMul4Bit, "input packed out bias state", weight=four_bit)
    describe_linear(functions.MatMul8bitLt, "input packed out bias state", weight=eight_bit)
    # What weights that are packed for a CPU are, only the kernel knows.
    describe_linear(
        torch.ops.bitsandbytes.gemv_4bit.default, "input packed size absmax code blocksize"
    )


_PACKAGES: dict[str, Callable[[], None]] = {"torch": _torch, "bitsandbytes": _bitsandbytes}


def describe_packages() -> None:
    """Describes the packages that have been imported since it was last called."""
    for name in [name for name in _PACKAGES if name in sys.modules]:
        _PACKAGES.pop(name)()
