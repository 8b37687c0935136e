"""Gathers the parameters of modules that FSDP2 shards while they are explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lightning_callbacks.shared.flavors import MisconfigurationException

_OF_ALL = ("iter_forward_root", "post_backward_final_callback_queued")
_OF_STATE = ("_training_state", "_auto_reshard_after_forward")
_OF_GROUP = (
    "_training_state",
    "post_forward_mesh_info",
    "reshard_after_backward",
    "reduce_grads",
    "all_reduce_grads",
)


def is_sharded(module: nn.Module) -> bool:
    """Returns whether FSDP2 shards a module or parts of it."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gathers all parameters of a module that FSDP2 shards in each process.

    All processes have to enter it together, and don't wait for each other before the end: each may
    explain alone, or not at all. It takes the memory of the whole module's parameters. Nothing is
    reduced or resharded inside. On exit, the states of the module and of FSDP2 are restored, even
    after a forward or backward pass that has failed.

    Args:
        module: The module; one that isn't sharded stays as it is.

    Raises:
        MisconfigurationException: If parameters stay split, as under tensor parallelism.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not parts:
        yield
        return
    bookkeeping = _Bookkeeping(parts)
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            for part in parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.set_reshard_after_backward(False, recurse=False)
                part.set_requires_gradient_sync(False, recurse=False)
                part.unshard()
        for name, parameter in module.named_parameters():
            if isinstance(parameter, DTensor):
                raise MisconfigurationException(
                    f"{name!r} is a DTensor even where FSDP2 has put the module together, as under "
                    "tensor parallelism, which can't be explained while the module trains. Explain "
                    "a checkpoint after the training."
                )
        yield
    finally:
        bookkeeping.put_back()


class _Bookkeeping:
    """The state that FSDP2 keeps of forward and backward passes, and its settings."""

    def __init__(self, parts: Sequence[FSDPModule]) -> None:
        self._parts: list[tuple[FSDPModule, bool]] = []
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._lists: list[tuple[Any, Any]] = []
        self._hooks: list[tuple[dict[int, Any], int, Any]] = []
        for part in parts:
            state = part._get_fsdp_state()
            # As the first forward pass does; outer modules come before their parts.
            state._lazy_init()
            groups = _groups_of(state)
            self._parts.append((part, all(group.is_sharded for group in groups)))
            self._note(state, _OF_STATE)
            self._note(state._state_ctx, _OF_ALL)
            self._lists.append((state._modules_to_run_forward, None))
            for group in groups:
                self._note(group, _OF_GROUP)
                self._set_hooks_aside(group)
                for numbers in (group._post_forward_indices, group.comm_ctx.post_forward_order):
                    self._lists.append((numbers, list(numbers)))
                for parameter in group.fsdp_params:
                    self._note(parameter, ("unsharded_accumulated_grad",))
                    # Gradients that wait for their reduction are accumulated in place.
                    parameter.unsharded_accumulated_grad = None

    def _note(self, holder: Any, names: tuple[str, ...]) -> None:
        self._attributes.append((holder, {n: getattr(holder, n) for n in names}))

    def _set_hooks_aside(self, group: Any) -> None:
        """Removes the hooks that shard the module again when its ``state_dict`` is requested."""
        for module, handle in group._module_to_pre_save_state_dict_hook_handle.items():
            hooks = module._state_dict_pre_hooks
            if handle.id in hooks:
                self._hooks.append((hooks, handle.id, hooks.pop(handle.id)))

    def put_back(self) -> None:
        for hooks, number, hook in self._hooks:
            hooks[number] = hook
        for holder, values in self._attributes:
            for name, value in values.items():
                setattr(holder, name, value)
        for numbers, values in self._lists:
            numbers.clear()
            if values is not None:
                numbers.extend(values)
        for part, sharded in self._parts:
            if sharded:
                part.reshard()


def _groups_of(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # before PyTorch 2.12
        groups = [] if state._fsdp_param_group is None else [state._fsdp_param_group]
    return list(groups)
