"""Models that can't be explained as they are: scripted code, sharded weights, those that fail."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.copies import with_own_arguments
from captum_transformer.calling.memory import is_out_of_memory
from captum_transformer.errors import (
    ExplanationError,
    UnseenOperationError,
    UnsupportedOperationError,
)


def sharded_parameter(modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    """Returns the name of a parameter that is a ``DTensor``, or None if there is none.

    Under FSDP2 weights are only whole while their module runs, and their memory is released before
    a rule reads them.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None:
        return None
    for name, module in modules:
        for own, parameter in vars(module).get("_parameters", {}).items():
            if isinstance(parameter, tensors.DTensor):
                return f"{name}.{own}".lstrip(".")
    return None


def is_sharded(tensor: Tensor) -> bool:
    """Returns whether a tensor is a ``DTensor``: each process has a part of it."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def reads_sharded(what: str) -> UnsupportedOperationError:
    """Returns the error of a rule that needs whole weights but gets sharded ones."""
    return UnsupportedOperationError(
        f"{what} is sharded (a DTensor), but this method's rules read whole weights after the "
        "forward pass. Under FSDP2 call `set_reshard_after_forward(False)`, "
        "`set_reshard_after_backward(False)` and `unshard()` of each sharded module on all ranks "
        "before you explain, and `reshard()` afterwards, or use a method that reads no weights, "
        "such as ConservativeLRP, AttnLRP or GenericAttentionRelevance. Under tensor parallelism "
        "explain a copy with whole weights."
    )


@contextmanager
def refusing_scripted(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[None]:
    """Raises as soon as a scripted module runs: neither its operations nor token ids are seen."""
    scripted = {
        id(module): name for name, module in modules if isinstance(module, torch.jit.ScriptModule)
    }

    def refuse(module: nn.Module, _: Any) -> None:
        if id(module) in scripted:
            name = scripted[id(module)]
            raise UnseenOperationError(
                f"{f'Module {name!r}' if name else 'The model'} is scripted or traced code of "
                f"`torch.jit`, which can't be inspected. Explain the Python model that it was "
                f"made from."
            )

    hook = register_module_forward_pre_hook(refuse) if scripted else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def called(
    forward_func: Callable[..., Any], arguments: Arguments[Any], entered: Sequence[Tensor]
) -> Any:
    """Calls a model with some inputs, and explains errors that the model raises."""
    try:
        return arguments.call(with_own_arguments(forward_func), entered)
    except ExplanationError:
        raise
    except SystemError as error:
        if isinstance(error.__cause__, ExplanationError):
            # Torch functions that custom functions call hide the errors that are raised there.
            raise error.__cause__ from None
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        arguments.refuse_unrepeated(error)
        if isinstance(error, RuntimeError) and "Inference tensors" in str(error):
            raise ExplanationError(
                "The model uses tensors that were made under `torch.inference_mode()`, which "
                "can't take part in a gradient: its weights, if it was built or loaded there, or "
                "tensors that it stored while it ran there. Create the model outside, or explain "
                "a copy, `copy.deepcopy(model)`, made outside; `torch.no_grad()` is allowed."
            ) from error
        raise
