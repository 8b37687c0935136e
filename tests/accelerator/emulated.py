"""An accelerator that lives on the CPU, to run where there is no GPU what is marked ``gpu``.

Its tensors are plain tensors on a device of their own. Their numbers lie in CPU memory that the
kernels here reach and nothing else does: an operation that is given tensors of two devices raises,
what is copied to the host is counted, memory is counted and may be limited, and random numbers come
from a generator of its own. What it can't show are a GPU's kernels, their rounding and their speed.

PyTorch decides once in a process which accelerator it has: `register` comes before anything else is
computed, and there is no way back.
"""

import contextlib
import functools
from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from tests.accelerator.module import MODULE, NAME, Memory, note_read

# What PyTorch needs for it, an experiment of recent releases.
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

_ATEN = torch.ops.aten
_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
# These may be given indices on the host.
_DOUBLE = {torch.float64, torch.complex128}
_INDEXING = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_}


def is_on_it(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _numbers_of(tensor: Tensor) -> Tensor:
    """The same tensor on the CPU: it shares the memory."""
    memory: Any = tensor.untyped_storage()
    like = torch.empty(0, dtype=tensor.dtype)
    shape = tensor.storage_offset(), tensor.size(), tensor.stride()
    return like.set_(memory.memory.numbers, *shape)


def _laid_out(tensor: Tensor, storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Gives a tensor a storage and the layout of another one."""
    layout = like.storage_offset(), like.size(), like.stride()
    return _ATEN.set_.source_Storage_storage_offset.redispatch(_META, tensor, storage, *layout)


def _placed(numbers: Tensor) -> Tensor:
    """A tensor of the accelerator that takes over one of the CPU."""
    if numbers.dtype in _DOUBLE and not MODULE.has_double:
        raise TypeError(f"The emulated accelerator has no {numbers.dtype}.")
    tensor = torch._C._acc.create_empty_tensor((), numbers.dtype)
    storage: Any = tensor.untyped_storage()
    storage.memory = Memory(numbers.untyped_storage())
    return _laid_out(tensor, storage, numbers)


def _view(tensor: Tensor, numbers: Tensor) -> Tensor:
    """What looks at a tensor's memory as another one looks at that of its numbers."""
    if numbers.dtype != tensor.dtype:
        like = torch._C._acc.create_empty_tensor((), numbers.dtype)
        return _laid_out(like, tensor.untyped_storage(), numbers)
    layout = numbers.size(), numbers.stride(), numbers.storage_offset()
    return _ATEN.as_strided.default.redispatch(_META, tensor, *layout)


class _Numbers:
    """The tensors of one call and their numbers; no function of it holds itself in a cycle."""

    def __init__(self) -> None:
        self.given: dict[int, Tensor] = {}
        self.elsewhere: list[Tensor] = []
        self._by_memory: dict[int, Tensor] = {}

    def of(self, value: Any) -> Any:
        """What stands on the CPU for an argument."""
        if isinstance(value, Tensor):
            if not is_on_it(value):
                self.elsewhere.append(value)
                return value
            numbers = _numbers_of(value)
            self.given[id(numbers)] = value
            self._by_memory[numbers.untyped_storage()._cdata] = value
            return numbers
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == NAME else value
        return type(value)(map(self.of, value)) if type(value) in (list, tuple) else value

    def back(self, value: Any) -> Any:
        """What stands on the accelerator for a result."""
        if isinstance(value, Tensor):
            if id(value) in self.given:
                return self.given[id(value)]
            source = self._by_memory.get(value.untyped_storage()._cdata)
            return _placed(value) if source is None else _view(source, value)
        return type(value)(map(self.back, value)) if type(value) in (list, tuple) else value


def _kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Every operation: it runs on the numbers."""
    call = _Numbers()
    looks = _looks(op)
    inner = [
        torch.tensor(value) if place in looks.numbers and isinstance(value, Number) else value
        for place, value in enumerate(map(call.of, args))
    ]
    named = {name: call.of(value) for name, value in kwargs.items()}
    if call.given and not looks.indexes:
        mixed = [tuple(tensor.shape) for tensor in call.elsewhere if tensor.ndim]
        if mixed:
            raise RuntimeError(f"{op} is given tensors of another device, of shapes {mixed}.")
    if named.get("generator") is not None:
        raise RuntimeError(f"{op} is given a generator of another device.")
    if looks.waits or (looks.indexes and _is_masked(args[1])):
        note_read(op.overloadpacket.__name__)
    with MODULE.drawing() if looks.draws else contextlib.nullcontext():
        result = op(*inner, **named)
    for numbers in (*inner, *named.values()):
        tensor = call.given.get(id(numbers))
        if tensor is not None and tensor.shape != numbers.shape:
            _laid_out(tensor, tensor.untyped_storage(), numbers)
    return call.back(result)


class _Looks(NamedTuple):
    """What matters of an operation.

    Attributes:
        numbers: where it gets numbers that it takes as tensors only.
        draws: whether it draws random numbers.
        indexes: whether it may be given indices on the host.
        waits: whether the host waits for it.
    """

    numbers: frozenset[int]
    draws: bool
    indexes: bool
    waits: bool


@functools.cache
def _looks(op: Any) -> _Looks:
    arguments, numbers = enumerate(op._schema.arguments), frozenset[int]()
    if not torch._C._should_allow_numbers_as_tensors(op.overloadpacket.__name__):
        numbers = frozenset(place for place, each in arguments if str(each.type) == "Tensor")
    indexes = op.overloadpacket in _INDEXING
    waiting = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    waits = not indexes and not waiting.isdisjoint(op.tags)
    return _Looks(numbers, torch.Tag.nondeterministic_seeded in op.tags, indexes, waits)


def _is_masked(indices: Any) -> bool:
    """Whether a shape depends on numbers."""
    return any(is_on_it(each) and each.dtype in (torch.bool, torch.uint8) for each in indices)


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if is_on_it(target):
        _numbers_of(target).copy_(_numbers_of(source) if is_on_it(source) else source)
    else:
        note_read("copy to the host")
        target.copy_(_numbers_of(source))
    return target


def _set(tensor: Tensor, storage: Any, offset: int, size: Any, stride: Any = ()) -> Tensor:
    layout = torch.empty(0, dtype=tensor.dtype).set_(storage.memory.numbers, offset, size, stride)
    return _laid_out(tensor, storage, layout)


def _clone_storage(storage: Any) -> Any:
    """As tensors are copied with the models that hold them."""
    if not hasattr(storage, "memory"):
        return _plain_clone(storage)
    numbers = torch.empty(0, dtype=torch.uint8).set_(storage.memory.numbers)
    return _placed(numbers.clone()).untyped_storage()


def _storage_address(storage: Any) -> int:
    plain = _plain_storage_address(storage)
    return storage.memory.numbers.data_ptr() if hasattr(storage, "memory") else plain


def _address(tensor: Tensor) -> int:
    return _plain_address(_numbers_of(tensor) if is_on_it(tensor) else tensor)


_plain_clone, _plain_storage_address = torch.UntypedStorage.clone, torch.UntypedStorage.data_ptr
_plain_address = torch.Tensor.data_ptr
# What autocasting runs in half precision and in single precision, of what Transformers do.
_HALF = "linear matmul mm bmm addmm baddbmm conv1d conv2d conv3d scaled_dot_product_attention"
_SINGLE = (
    "softmax log_softmax layer_norm native_layer_norm exp pow rsqrt sum cumsum linalg_vector_norm"
)
_AUTOCAST = "AutocastPrivateUse1"


def _autocast(op: Any, half: bool, *args: Any, **kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype(NAME) if half else torch.float32

    def cast(value: Any) -> Any:
        floats = is_on_it(value) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if floats else value

    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST))
    with torch._C._ExcludeDispatchKeyGuard(key):
        args, kwargs = pytree.tree_map(cast, (args, kwargs))
        return op(*args, **kwargs)


_libraries: list[torch.library.Library] = []


def register() -> None:
    """Makes it the accelerator of this process."""
    if _libraries:
        return
    setup = backend_registration._setup_privateuseone_for_python_backend
    setup(NAME, backend_module=MODULE)
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((every, aten))
    every.fallback(_kernel, "PrivateUse1")
    aten.impl("_copy_from", _copy, "PrivateUse1")
    aten.impl("set_.source_Storage_storage_offset", _set, "PrivateUse1")
    for op in (_ATEN.convolution.default, _ATEN.convolution_backward.default):
        # They ask other packages for the accelerator's kernel.
        aten.impl(op, functools.partial(_kernel, op), "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, _AUTOCAST)
    for half, names in ((True, _HALF), (False, _SINGLE)):
        for packet in (getattr(_ATEN, name) for name in names.split()):
            for op in (getattr(packet, name) for name in packet.overloads() if "out" not in name):
                aten.impl(op, functools.partial(_autocast, op, half), _AUTOCAST)
    # PyTorch itself knows of no address.
    torch.UntypedStorage.clone, torch.UntypedStorage.data_ptr = _clone_storage, _storage_address
    torch.Tensor.data_ptr = _address
