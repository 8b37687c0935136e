"""The table of torch functions: what each one *is*, whatever it is called through.

``torch.add``, ``Tensor.add_``, ``x + y`` and ``x += y`` are one function here. Rules are written
for the kinds, so a rule never asks for the name that a model happened to use.
"""

import enum
import inspect
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Kind(enum.Enum):
    """The kinds of operation that rules tell apart."""

    QUERY = enum.auto()  # reads metadata; no tensor comes out that a rule would care for
    SHAPE = enum.auto()  # moves, copies or drops entries
    ELEMENTWISE = enum.auto()  # one entry in, one entry out, same shape
    NORM = enum.auto()
    SOFTMAX = enum.auto()
    DROPOUT = enum.auto()
    ADD = enum.auto()
    SUB = enum.auto()
    MUL = enum.auto()
    DIV = enum.auto()
    RECIPROCAL = enum.auto()  # what becomes a denominator: 1/x, x**-0.5, rsqrt(x)
    LINEAR = enum.auto()
    CONV = enum.auto()
    EMBEDDING = enum.auto()
    MATMUL = enum.auto()
    ATTENTION = enum.auto()
    SUM = enum.auto()
    MEAN = enum.auto()
    POOL = enum.auto()
    TRANSFORM = enum.auto()  # Fourier transforms: linear, with complex numbers in or out
    CONTRAST = enum.auto()  # one score minus another; no torch function is of this kind
    OTHER = enum.auto()

    # By identity: members are looked up in sets at each operation, and Enum hashes in Python.
    __hash__ = object.__hash__


_NAMES: dict[Kind, str] = {
    Kind.QUERY: """
        shape dtype device requires_grad grad grad_fn is_leaf ndim layout is_nested
        is_cuda is_cpu is_mps is_xpu is_meta is_sparse is_quantized is_mkldnn is_mtia
        is_ipu is_maia is_vulkan is_xla is_ort is_sparse_csr itemsize nbytes names
        output_nr name volatile dim size numel nelement stride storage_offset
        is_contiguous is_floating_point is_complex is_signed element_size get_device
        data_ptr untyped_storage storage is_same_size is_pinned is_inference is_conj
        is_neg is_set_to is_shared dim_order has_names len hash repr format
        set_grad_enabled requires_grad_ retain_grad register_hook item tolist numpy bool
        float_ index contains base backward_hooks retains_grad version
    """,
    Kind.SHAPE: """
        reshape view permute transpose t T mT H mH adjoint swapaxes swapdims movedim
        moveaxis flatten unflatten squeeze unsqueeze contiguous clone expand broadcast_to
        repeat tile repeat_interleave chunk split split_with_sizes tensor_split hsplit
        vsplit dsplit unbind getitem select narrow index_select take_along_dim gather cat
        concat concatenate stack hstack vstack roll flip fliplr flipud rot90 pad
        constant_pad_nd masked_fill where index_put setitem index_copy scatter
        masked_select masked_scatter as_strided as_strided_scatter unfold fold
        pixel_shuffle pixel_unshuffle channel_shuffle tril triu diagonal take alias ravel
        meshgrid broadcast_tensors atleast_1d atleast_2d atleast_3d unsafe_chunk
        unsafe_split copy select_scatter slice_scatter diagonal_scatter view_as_real
        view_as_complex
    """,
    Kind.ELEMENTWISE: """
        long int short
        sinh cosh tan asin acos atan asinh acosh atanh erfc erfinv logit sinc log2 log10
        exp2 sgn sign round floor ceil trunc frac relu relu6 gelu silu mish elu selu celu
        leaky_relu hardswish hardsigmoid hardtanh tanh sigmoid logsigmoid softplus
        softsign tanhshrink softshrink hardshrink threshold prelu rrelu exp expm1 log
        log1p sqrt pow square abs neg negative positive erf sin cos clamp clip clamp_min
        clamp_max nan_to_num remainder fmod mod to type float half bfloat16 double cpu cuda
        real log_softmax
    """,
    Kind.NORM: """
        layer_norm rms_norm group_norm batch_norm instance_norm local_response_norm
    """,
    Kind.SOFTMAX: "softmax",
    Kind.DROPOUT: """
        dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
        feature_alpha_dropout
    """,
    Kind.ADD: "add radd",
    Kind.SUB: "sub rsub subtract",
    Kind.MUL: "mul rmul multiply",
    Kind.DIV: "div truediv true_divide divide",
    Kind.RECIPROCAL: "rsqrt reciprocal rtruediv rdiv",
    Kind.LINEAR: "linear addmm grouped_mm grouped_mm_fallback",
    Kind.CONV: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    Kind.EMBEDDING: "embedding",
    Kind.MATMUL: "matmul rmatmul bmm mm mv einsum baddbmm",
    Kind.ATTENTION: "scaled_dot_product_attention",
    Kind.SUM: "sum",
    Kind.MEAN: "mean",
    Kind.POOL: """
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
        adaptive_avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
        adaptive_max_pool2d interpolate upsample boolean_dispatch amax max
    """,
    Kind.TRANSFORM: """
        fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_rfftn
        fft_irfft fft_irfft2 fft_irfftn
    """,
}
_BATCH_NORM = inspect.signature(F.batch_norm)
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}

CASTS = frozenset("to type float half bfloat16 double cpu cuda".split())
# On operands of the output's own shape these leave every entry, and its relevance, where it is.
ENTRY_WISE = frozenset(
    {
        Kind.ELEMENTWISE,
        Kind.NORM,
        Kind.SOFTMAX,
        Kind.RECIPROCAL,
        Kind.ADD,
        Kind.SUB,
        Kind.MUL,
        Kind.DIV,
    }
)
# Sums of entries of which the operation's own indices say where each goes.
SUMS_AT_INDICES = frozenset({"index_add", "scatter_add"})
# Python composites that keep what matters inside: their bodies are traced, not they themselves.
_COMPOSITES = frozenset({F.multi_head_attention_forward, F.normalize})


@dataclass(frozen=True)
class Function:
    """What the trace knows of one torch function.

    Attributes:
        name: its bare name, the same for ``add``, ``add_``, ``__add__`` and ``__iadd__``.
        kind: what it is.
        call: an out-of-place callable with the same arguments, for replaying it on other tensors.
        inplace: whether it writes into its first argument.
        takes_inplace: whether it can be asked to, as ``F.relu(x, inplace=True)``.
        body: for a composite, what it does, without its own dispatch to the trace.
    """

    name: str
    kind: Kind
    call: Callable[..., Any]
    inplace: bool = False
    takes_inplace: bool = False
    body: Callable[..., Any] | None = None


def _setitem(tensor: Tensor, index: Any, value: Any) -> Tensor:
    result = tensor.clone()
    result[index] = value
    return result


def _copy(tensor: Tensor, source: Tensor, *_: Any, **__: Any) -> Tensor:
    return source.expand_as(tensor)


_OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "setitem": _setitem,
    "copy": _copy,
    "truediv": operator.truediv,
}
_IN_PLACE_OPERATORS = frozenset(
    "__iadd__ __isub__ __imul__ __idiv__ __itruediv__ __imatmul__ __ipow__".split()
)


def _out_of_place(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    for found in (_OUT_OF_PLACE.get(name), getattr(torch.Tensor, name, None)):
        if found is not None:
            return found
    found = getattr(torch, name, None)
    return function if found is None else found


def _body(function: types.FunctionType) -> types.FunctionType:
    """The function as if no argument asked for dispatch: what it calls is traced instead."""
    scope = {**function.__globals__, "has_torch_function": lambda *_: False}
    scope |= {
        "has_torch_function_unary": lambda *_: False,
        "has_torch_function_variadic": lambda *_: False,
    }
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    return (F.normalize(x1, dim=dim, eps=eps) * F.normalize(x2, dim=dim, eps=eps)).sum(dim)


def _glu(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002 - its name in torch
    signal, gate = input.split(input.shape[dim] // 2, dim)  # type: ignore[no-untyped-call]
    gated: Tensor = signal * torch.sigmoid(gate)
    return gated


# Products that the functions hide.
_WRITTEN_OUT: dict[str, Callable[..., Any]] = {"cosine_similarity": _cosine_similarity, "glu": _glu}


@cache
def describe(function: Callable[..., Any]) -> Function:
    """Looks a torch function up in the table, by its bare name.

    >>> describe(torch.Tensor.add_).name, describe(torch.Tensor.__iadd__).kind.name
    ('add', 'ADD')
    """
    raw = getattr(function, "__name__", type(function).__name__)
    if raw in ("__get__", "__set__"):
        attribute = getattr(getattr(function, "__self__", None), "__name__", raw)
        raw = attribute if raw == "__get__" else f"set_{attribute}"
    name = raw.strip("_")
    dunder = raw.startswith("__")
    if raw in _IN_PLACE_OPERATORS:
        name = name.removeprefix("i")
    kind = _KINDS.get(name, Kind.OTHER)
    if raw in ("requires_grad_", "retain_grad", "__float__", "__int__", "__bool__"):
        kind = Kind.QUERY
    writes = raw.endswith("_") and not dunder and kind is not Kind.QUERY
    inplace = writes or raw in _IN_PLACE_OPERATORS or raw in ("__setitem__", "copy_")
    if function in _COMPOSITES and isinstance(function, types.FunctionType):
        return Function(name, kind, function, body=_body(function))
    if name in _WRITTEN_OUT:
        return Function(name, kind, function, body=_WRITTEN_OUT[name])
    call: Callable[..., Any] = function
    if inplace:
        call = _out_of_place(name, function)
    return Function(name, kind, call, inplace, _takes(function, "inplace"))


def _takes(function: Callable[..., Any], parameter: str) -> bool:
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def requested_inplace(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a call such as ``F.relu(x, inplace=True)`` asks to write into its input."""
    if not describe(function).takes_inplace:
        return bool(kwargs.get("inplace"))
    bound = inspect.signature(function).bind(*args, **kwargs)
    return bool(bound.arguments.get("inplace"))


def deterministic(
    func: Callable[..., Any], function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Switches off what makes a forward pass random, or dependent on the rest of the batch."""
    if function.kind is Kind.ATTENTION:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs, "dropout_p": 0.0}
        return (), kwargs
    if func is F.batch_norm:
        bound = dict(_BATCH_NORM.bind(*args, **kwargs).arguments)
        if bound.get("running_mean") is not None:
            return (), {**bound, "training": False}
    return args, kwargs


def without_inplace(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes ``inplace`` as one that does not write into its input."""
    signature = inspect.signature(func)

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        return func(**{**bound.arguments, "inplace": False})

    return call
