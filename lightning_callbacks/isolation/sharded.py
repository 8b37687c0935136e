"""Gathers the parameters of modules that FSDP2 shards while they are explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from lightning_callbacks.shared.flavors import MisconfigurationException

_OF_PASSES = ("iter_forward_root", "post_backward_final_callback_queued")
_SETTINGS = ("post_forward_mesh_info", "reshard_after_backward", "reduce_grads", "all_reduce_grads")


def is_sharded(module: nn.Module) -> bool:
    """Returns whether FSDP2 shards a module or parts of it."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gathers all parameters of a module that FSDP2 shards in each process.

    All processes have to enter it together, and don't wait for each other before the end: each may
    explain alone, or not at all. It takes the memory of the whole module's parameters. Nothing is
    reduced or resharded inside. On exit, the states of the module and of FSDP2 are restored.

    Args:
        module: The module; one that isn't sharded stays as it is.

    Raises:
        MisconfigurationException: If parameters stay split, as under tensor parallelism.
    """
    parts = _parts_of(module)
    if not parts:
        yield
        return
    settings = _Settings(parts)
    try:
        with passes_undone(module):
            with torch.inference_mode(mode=False), torch.no_grad():
                for part in parts:
                    part.set_reshard_after_forward(False, recurse=False)
                    part.set_reshard_after_backward(False, recurse=False)
                    part.set_requires_gradient_sync(False, recurse=False)
                    part.unshard()
                    for group in _groups_of(part._get_fsdp_state()):
                        for parameter in group.fsdp_params:
                            # Otherwise gradients are converted, and aren't `grad` any more.
                            parameter.reduce_dtype = None
            for name, parameter in module.named_parameters():
                if isinstance(parameter, DTensor):
                    raise MisconfigurationException(
                        f"{name!r} is a DTensor even where FSDP2 has put the module together, as "
                        "under tensor parallelism, which can't be explained while the module "
                        "trains. Explain a checkpoint after the training."
                    )
            yield
    finally:
        settings.put_back()


@contextmanager
def passes_undone(module: nn.Module) -> Iterator[None]:
    """Restores on exit what FSDP2 keeps of forward and backward passes.

    A pass that fails leaves FSDP2 in the middle of it. The next pass would go on from there, and
    might not convert its inputs to the precision of the parameters.

    Args:
        module: The module; one that isn't sharded stays as it is.
    """
    passes = _Passes(_parts_of(module))
    try:
        yield
    finally:
        passes.put_back()


@contextmanager
def without_conversions(module: nn.Module) -> Iterator[None]:
    """Stops FSDP2 from converting inputs and outputs to the precision of its policy.

    Args:
        module: The module; one that isn't sharded stays as it is.
    """
    noted = _Noted()
    try:
        for part in _parts_of(module):
            state = part._get_fsdp_state()
            noted.note(state, ("_mp_policy",))
            state._mp_policy = MixedPrecisionPolicy()
        yield
    finally:
        noted.put_back()


class _Noted:
    """Attributes and collections with the values that they are to have again."""

    def __init__(self) -> None:
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._collections: list[tuple[Any, list[Any]]] = []

    def note(self, holder: Any, names: Sequence[str]) -> None:
        self._attributes.append((holder, {name: getattr(holder, name) for name in names}))

    def put_back(self) -> None:
        for holder, values in self._attributes:
            for name, value in values.items():
                setattr(holder, name, value)
        for collection, items in self._collections:
            collection.clear()
            (collection.update if isinstance(collection, set) else collection.extend)(items)


class _Passes(_Noted):
    """How far forward and backward passes are, and gradients that wait for their reduction."""

    def __init__(self, parts: Sequence[FSDPModule]) -> None:
        super().__init__()
        for part in parts:
            state = part._get_fsdp_state()
            self.note(state, ("_training_state",))
            self.note(state._state_ctx, _OF_PASSES)
            collections = [state._modules_to_run_forward]
            for group in _groups_of(state):
                self.note(group, ("_training_state",))
                collections += group._post_forward_indices, group.comm_ctx.post_forward_order
                for parameter in group.fsdp_params:
                    self.note(parameter, ("unsharded_accumulated_grad",))
                    # Gradients are accumulated in place.
                    parameter.unsharded_accumulated_grad = None
            self._collections += ((collection, list(collection)) for collection in collections)


class _Settings(_Noted):
    """When modules are sharded and gradients reduced."""

    def __init__(self, parts: Sequence[FSDPModule]) -> None:
        super().__init__()
        self._sharded: list[FSDPModule] = []
        self._hooks: list[tuple[dict[int, Any], int, Any]] = []
        for part in parts:
            state = part._get_fsdp_state()
            groups = _groups_of(state)
            self.note(state, ("_auto_reshard_after_forward",))
            for group in groups:
                self.note(group, _SETTINGS)
                self._set_hooks_aside(group)
                for parameter in group.fsdp_params:
                    self.note(parameter, ("reduce_dtype",))
            if all(group.is_sharded for group in groups):
                self._sharded.append(part)

    def _set_hooks_aside(self, group: Any) -> None:
        """Removes the hooks that shard the module again when its ``state_dict`` is requested."""
        for module, handle in group._module_to_pre_save_state_dict_hook_handle.items():
            hooks = module._state_dict_pre_hooks
            if handle.id in hooks:
                self._hooks.append((hooks, handle.id, hooks.pop(handle.id)))

    def put_back(self) -> None:
        for hooks, number, hook in self._hooks:
            hooks[number] = hook
        super().put_back()
        for part in self._sharded:
            part.reshard()


def _parts_of(module: nn.Module) -> Sequence[FSDPModule]:
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        # As the first forward pass does; outer modules come before their parts.
        part._get_fsdp_state()._lazy_init()
    return parts


def _groups_of(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # before PyTorch 2.12
        groups = [] if state._fsdp_param_group is None else [state._fsdp_param_group]
    return list(groups)
