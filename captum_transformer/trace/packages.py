"""Linear layers that packages run with their own kernels or custom functions.

They are described with the functions that users call for other layers. Packages that have not been
imported are skipped.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.described import describe_function, describe_linear
from captum_transformer.trace.kinds import Kind


def _torch() -> None:
    """Describes the layers that ``torch.ao.quantization.quantize_dynamic`` creates."""
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
        # The state has these once the layer has run, if running it is what quantises the weights.
        return state.CB * (state.SCB / 127).unsqueeze(1)

    # Not every version has all of them.
    for name, weight in (("MatMul4Bit", four_bit), ("MatMul8bitLt", eight_bit)):
        if hasattr(functions, name):
            arguments = "input packed out bias state"
            describe_linear(getattr(functions, name), arguments, weight=weight)
    if hasattr(torch.ops.bitsandbytes, "gemv_4bit"):
        # Only the kernel can unpack weights that are packed for a CPU.
        kernel = torch.ops.bitsandbytes.gemv_4bit.default
        describe_linear(kernel, "input packed size absmax code blocksize")


def _bitnet() -> None:
    """Describes the rounding of activations in Transformers as having the identity's derivative."""
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
