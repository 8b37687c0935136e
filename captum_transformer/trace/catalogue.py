"""The table of torch functions: the kind of each function, and the names of its arguments.

``torch.add``, ``Tensor.add_``, ``x + y`` and ``x += y`` are one function here, and so are
``softmax(dim=1)`` and ``softmax(axis=1)``. Rules use kinds and canonical argument names, and don't
depend on how the model spells a call. All passes refuse functions that are not in the table.

A line of the table is ``name(argument other/alias *rest @dimensions !form)``, see `entry_of`.
Trailing arguments that no rule reads are omitted. Variants that differ only by a prefix or suffix
of the name, such as ``expand_copy`` and ``special.softmax``, share one line.
"""

import re

import torch

from captum_transformer.trace.entries import Entry, entry_of
from captum_transformer.trace.kinds import Kind

TABLE: dict[Kind, str] = {
    Kind.ASKS: """
        shape dtype device requires_grad grad grad_fn is_leaf ndim layout is_nested is_cuda is_cpu
        is_mps is_xpu is_meta is_sparse is_quantized is_mkldnn is_mtia is_ipu is_maia is_vulkan
        is_xla is_ort is_sparse_csr itemsize nbytes names output_nr name volatile dim ndimension
        size numel nelement stride storage_offset is_contiguous is_floating_point is_complex
        is_signed element_size get_device data_ptr untyped_storage storage is_same_size is_pinned
        is_inference is_conj is_neg is_set_to is_shared dim_order has_names len hash repr format
        set_grad_enabled requires_grad_ retain_grad item tolist numpy array bool
        float_ int_ index contains base backward_hooks set__backward_hooks retains_grad version
        post_accumulate_grad_hooks register_post_accumulate_grad_hook is_view is_distributed
        is_nonzero storage_type reduce_ex deepcopy dlpack dlpack_device cdata backward
        eq ne lt le gt ge equal not_equal less less_equal greater greater_equal isclose allclose
        isnan isinf isfinite isneginf isposinf isreal isin signbit any all logical_and logical_or
        logical_not logical_xor and or xor invert bitwise_and bitwise_or bitwise_not bitwise_xor
        argmax argmin argsort argwhere nonzero nonzero_static count_nonzero bincount histc
        searchsorted bucketize unique unique_consecutive one_hot heaviside
        zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros
        new_ones new_full new_empty new_tensor new_empty_strided bernoulli multinomial normal
        result_type can_cast promote_types broadcast_shapes
    """,
    Kind.MOVE: """
        reshape(input *shape) view(input *shape/size/dtype) permute(input *dims)
        transpose(input dim0 dim1) t(input) T(input) mT(input) H(input) mH(input) adjoint(input)
        numpy_T(input) swapaxes(input dim0/axis0 dim1/axis1) swapdims(input dim0 dim1)
        movedim(input source_dim/source destination) moveaxis(input source_dim/source destination)
        flatten(input start_dim end_dim) unflatten(input dim sizes) squeeze(input *dim)
        unsqueeze(input dim) expand(input *shape/size) broadcast_to(input shape/size)
        repeat(input *repeats @:0) tile(input *repeats/dims @:0)
        repeat_interleave(input repeats dim @:) chunk(input chunks dim)
        split(input sizes/split_size/split_sizes/split_size_or_sections dim)
        split_with_sizes(input sizes/split_sizes dim) ravel(input)
        tensor_split(input sizes/sections/indices/indices_or_sections/tensor_indices_or_sections
            dim)
        hsplit(input sizes/sections/indices/indices_or_sections)
        vsplit(input sizes/sections/indices/indices_or_sections)
        dsplit(input sizes/sections/indices/indices_or_sections) unbind(input dim)
        getitem(input brackets/idx/key) select(input dim at/index) iter(input)
        narrow(input dim start length) narrow_copy(input dim start length)
        index_select(input dim index @:) take_along_dim(input index dim @:)
        gather(input dim index @:) take(input index) roll(input shifts dim/dims @: !orders)
        flip(input *dim/dims @: !orders) fliplr(input @1:2 !orders) flipud(input @:1 !orders)
        rot90(input k dims !orders)
        reversed(input @:1) masked_fill(input mask value @:0) where(mask/condition input other @:0)
        setitem(input brackets/index source) index_copy(input dim index source @:)
        index_fill(input dim index value @:) masked_select(input mask)
        masked_scatter(input mask source) as_strided(input shape/size stride offset/storage_offset)
        as_strided_scatter(input source shape/size stride offset/storage_offset)
        unfold(input dimension size step) im2col(input kernel_size)
        pixel_shuffle(input upscale_factor) pixel_unshuffle(input downscale_factor)
        channel_shuffle(input groups) native_channel_shuffle(input groups) tril(input diagonal @:0)
        triu(input diagonal @:0) diagonal(input offset dim1 dim2) diag(input diagonal)
        diag_embed(input offset dim1 dim2) diagflat(input offset)
        linalg_diagonal(input/A offset dim1 dim2) block_diag(*tensors) combinations(input r)
        cartesian_prod(*tensors) copy(input source @:0) select_scatter(input source dim at/index)
        slice_scatter(input source dim start end step) diagonal_scatter(input source offset)
        fft_fftshift(input dim) fft_ifftshift(input dim) resize(input *shape/size)
        fill(input value @:0) fill_diagonal(input value @:0) vander(input/x)
        unravel_index(index shape) slice(input dim start end step)
        put(input index source accumulate) index_put(input index source/values accumulate)
        scatter(input dim index source reduce @:)
    """,
    Kind.CONCATENATE: "cat(tensors dim @:1) concat(tensors dim @:1) concatenate(tensors dim @:1)",
    Kind.STACK: "stack(tensors dim @:1)",
    Kind.PAD: "pad(input pad mode value) constant_pad_nd(input pad value)",
    Kind.AS_COMPLEX: "view_as_complex(input @-1:)",
    Kind.AS_REAL: "view_as_real(input)",
    Kind.COPY: """
        clone(input) contiguous(input) alias(input) detach(input)
        to(input dtype) type(input dtype) float(input) half(input) bfloat16(input) double(input)
        cpu(input) cuda(input) xpu(input) mps(input) pin_memory(input) positive(input)
        long(input) int(input) short(input) char(input) byte(input)
        resolve_conj(input) resolve_neg(input) real(input) imag(input) conj(input)
        conj_physical(input)
    """,
    Kind.ENTRYWISE: """
        sinh(input) cosh(input) tan(input) asin(input) acos(input) atan(input) asinh(input)
        acosh(input) atanh(input) arcsin(input) arccos(input) arctan(input) arcsinh(input)
        arccosh(input) arctanh(input) erf(input) erfc(input) erfinv(input) logit(input eps)
        sinc(input) log(input !logarithm) log2(input !logarithm) log10(input !logarithm)
        log1p(input) exp(input !exponential) exp2(input !exponential) expm1(input) sgn(input !step)
        sign(input !step) round(input !step) floor(input !step) ceil(input !step) trunc(input !step)
        fix(input !step) floor_divide(input other !step) floordiv(input other !step)
        frac(input !pieces) relu6(input !pieces) gelu(input approximate) silu(input) mish(input)
        elu(input alpha) selu(input) celu(input alpha) hardswish(input !pieces)
        hardsigmoid(input !pieces) hardtanh(input min/min_val max/max_val !pieces) tanh(input)
        sigmoid(input) logsigmoid(input) log_sigmoid(input) softplus(input beta threshold)
        softsign(input !pieces) tanhshrink(input) softshrink(input lambd !pieces)
        hardshrink(input lambd !pieces) threshold(input threshold value !pieces)
        rrelu(input lower upper) sqrt(input !power) pow(input exponent !power)
        rpow(exponent input/other !power) float_power(input exponent !power) square(input !power)
        sin(input) cos(input) clamp(input min max !power) clip(input min max !power)
        clamp_min(input min !power) clamp_max(input max !power) nan_to_num(input nan !power)
        remainder(input other !pieces) fmod(input other !pieces) mod(input other !pieces)
        digamma(input) lgamma(input) i0(input) polygamma(n input) mvlgamma(input p)
        special_psi(input) special_gammaln(input) special_multigammaln(input p) special_erfcx(input)
        special_expit(input) special_ndtr(input) special_ndtri(input) special_log_ndtr(input)
        special_entr(input) special_i0e(input) special_i1(input) special_i1e(input)
    """,
    Kind.HOMOGENEOUS: """
        relu(input !pieces) leaky_relu(input negative_slope !pieces) prelu(input weight !pieces)
        abs(input !pieces) absolute(input !pieces) neg(input) negative(input) deg2rad(input)
        rad2deg(input)
    """,
    Kind.NORM: """
        layer_norm(input normalized_shape weight bias eps)
        rms_norm(input normalized_shape weight eps)
        native_layer_norm(input normalized_shape weight bias eps)
        fused_rms_norm(input normalized_shape weight eps)
        group_norm(input num_groups weight bias eps)
        batch_norm(input weight bias running_mean running_var training momentum eps)
        instance_norm(input weight bias running_mean running_var use_input_stats momentum eps)
    """,
    Kind.SOFTMAX: "softmax(input dim) safe_softmax(input dim) softmin(input dim)",
    Kind.LOG_SOFTMAX: "log_softmax(input dim)",
    Kind.DROPOUT: """
        dropout(input) dropout1d(input) dropout2d(input) dropout3d(input) alpha_dropout(input)
        feature_dropout(input) feature_alpha_dropout(input) native_dropout(input)
    """,
    Kind.ADD: "add(input other alpha) radd(input other)",
    Kind.SUB: """
        sub(input other alpha) subtract(input other alpha) rsub(other/input input/other alpha)
    """,
    Kind.MUL: "mul(input other) rmul(input other) multiply(input other)",
    Kind.DIV: """
        div(input other) truediv(input other) true_divide(input other) divide(input other)
        rtruediv(other/input input/other) rdiv(other/input input/other)
    """,
    Kind.RECIPROCAL: "rsqrt(input !pieces) reciprocal(input)",
    Kind.PRODUCT: """
        linear(input weight bias) matmul(input other) rmatmul(other/input input/other)
        bmm(input other/mat2) mm(input other/mat2) mv(input other/vec) dot(input other/tensor)
        vdot(input other) outer(input other/vec2) ger(input other/vec2)
        linalg_matmul(input other)
        tensordot(input/a other/b dims)
        einsum(equation *operands/tensors)
        bilinear(input/input1 other/input2 weight bias)
        addmm(bias/input input/mat1 other/mat2 beta alpha)
        addmv(bias/input input/mat other/vec beta alpha)
        addr(bias/input input/vec1 other/vec2 beta alpha)
        baddbmm(bias/input input/batch1 other/batch2 beta alpha)
        addbmm(bias/input input/batch1 other/batch2 beta alpha)
        addcmul(bias/input input/tensor1 other/tensor2 value)
        grouped_mm(input/mat_a other/mat2/mat_b index/offs bias)
        grouped_mm_fallback(input weight index/offs)
    """,
    Kind.CONV: """
        conv1d(input weight bias stride padding dilation groups)
        conv2d(input weight bias stride padding dilation groups)
        conv3d(input weight bias stride padding dilation groups)
    """,
    Kind.TRANSPOSED_CONV: """
        conv_transpose1d(input weight bias stride padding output_padding groups dilation)
        conv_transpose2d(input weight bias stride padding output_padding groups dilation)
        conv_transpose3d(input weight bias stride padding output_padding groups dilation)
    """,
    Kind.EMBEDDING: "embedding(weight index/input padding_idx)",
    Kind.ATTENTION: """
        scaled_dot_product_attention(query key value attn_mask dropout_p is_causal scale enable_gqa)
        flex_attention(query key value score_mod block_mask scale kernel_options
            score_mod_other_buffers mask_mod_other_buffers)
    """,
    Kind.SUM: "sum(input dim keepdim) nansum(input dim keepdim) trace(input)",
    Kind.MEAN: "mean(input dim keepdim) nanmean(input dim keepdim)",
    Kind.SUM_AT_INDICES: """
        index_add(input dim index source alpha) scatter_add(input dim index source)
        scatter_reduce(input dim index source reduce)
    """,
    Kind.POOL: """
        avg_pool1d(input kernel_size @-1:) avg_pool2d(input kernel_size @-2:)
        avg_pool3d(input kernel_size @-3:) adaptive_avg_pool1d(input output_size @-1:)
        adaptive_avg_pool2d(input output_size @-2:) adaptive_avg_pool3d(input output_size @-3:)
        interpolate(input size @2:) upsample(input size @2:) cumsum(input dim)
        fold(input output_size @-2:) col2im(input output_size @-2:) sum_to_size(input *shape/size)
        upsample_nearest(input size @2:) upsample_bilinear(input size @2:)
    """,
    Kind.MAXIMUM: """
        max_pool1d(input kernel_size @-1:) max_pool2d(input kernel_size @-2:)
        max_pool3d(input kernel_size @-3:) max_pool1d_with_indices(input kernel_size @-1:)
        max_pool2d_with_indices(input kernel_size @-2:)
        max_pool3d_with_indices(input kernel_size @-3:) boolean_dispatch(input @-3:)
        adaptive_max_pool1d(input output_size @-1:) adaptive_max_pool2d(input output_size @-2:)
        adaptive_max_pool3d(input output_size @-3:)
        adaptive_max_pool1d_with_indices(input output_size @-1:)
        adaptive_max_pool2d_with_indices(input output_size @-2:)
        adaptive_max_pool3d_with_indices(input output_size @-3:)
        fractional_max_pool2d(input kernel_size @-2:) fractional_max_pool3d(input kernel_size @-3:)
        fractional_max_pool2d_with_indices(input @-2:)
        fractional_max_pool3d_with_indices(input @-3:) amax(input dim keepdim)
        amin(input dim keepdim) aminmax(input dim) max(input dim keepdim) min(input dim keepdim)
        maximum(input other @:0) minimum(input other @:0) fmax(input other @:0)
        fmin(input other @:0)
    """,
    Kind.CHOICE: """
        topk(input k dim @-1:) sort(input dim @-1:) msort(input @:1) kthvalue(input k dim @-1:)
        median(input dim) nanmedian(input dim) mode(input dim @-1:) cummax(input dim)
        cummin(input dim)
    """,
    Kind.SAMPLE: "grid_sample(input grid @1:) grid_sampler(input grid @1:)",
    Kind.TRANSFORM: """
        fft_fft(input n dim @-1:) fft_fft2(input s dim @-2:) fft_fftn(input s dim)
        fft_ifft(input n dim @-1:) fft_ifft2(input s dim @-2:) fft_ifftn(input s dim)
        fft_rfft(input n dim @-1:) fft_rfft2(input s dim @-2:) fft_rfftn(input s dim)
        fft_irfft(input n dim @-1:) fft_irfft2(input s dim @-2:) fft_irfftn(input s dim)
    """,
    Kind.DISTANCE: """
        norm(input p dim keepdim) linalg_norm(input ord dim keepdim)
        linalg_vector_norm(input ord dim keepdim) linalg_matrix_norm(input ord dim keepdim @-2:)
        frobenius_norm(input dim keepdim) norm_except_dim(input/v pow dim) dist(input other p)
        cdist(input/x1 columns/x2 p) pairwise_distance(input/x1 other/x2 p eps keepdim @-1:)
    """,
    Kind.DERIVED: """
        cumprod(input dim) prod(input dim) var(input dim) std(input dim) var_mean(input dim)
        std_mean(input dim) inverse(input) linalg_inv(input/A) linalg_pinv(input) det(input)
        linalg_det(input/A) matrix_power(input n) linalg_matrix_power(input n)
    """,
    Kind.SMOOTH_MAXIMUM: """
        logsumexp(input dim keepdim) logcumsumexp(input dim)
        logaddexp(input other @:0) logaddexp2(input other @:0)
    """,
    Kind.SOLVE: "linalg_solve_triangular(input other/B @-2:) linalg_solve(input/A other/B @-2:)",
    Kind.UNKNOWN: "angle(input !step)",
    Kind.DATA: "data(input) set_data(input source) register_hook(input hook)",
}

# Functions of kind ASKS that return a tensor: masks, indices, counts, or random choices.
QUESTIONS = frozenset(
    """
        eq ne lt le gt ge not_equal less less_equal greater greater_equal isclose isnan isinf
        isfinite isneginf isposinf isreal isin signbit any all logical_and logical_or logical_not
        logical_xor and or xor invert bitwise_and bitwise_or bitwise_not bitwise_xor argmax argmin
        argsort argwhere nonzero nonzero_static count_nonzero bincount histc searchsorted
        bucketize unique unique_consecutive one_hot heaviside bernoulli multinomial
    """.split()
)


def _others(name: str) -> list[str]:
    """Returns the other names of a function in torch."""
    others = [other for other in (f"{name}_copy", f"unsafe_{name}") if hasattr(torch, other)]
    return [*others, f"special_{name}"] if hasattr(torch.special, name) else others


ENTRIES: dict[str, Entry] = {
    name: entry_of(kind, arguments)
    for kind, text in TABLE.items()
    for name, arguments in re.findall(r"(\w+)(?:\(([^)]*)\))?", text)
}
ENTRIES = {other: entry for name, entry in ENTRIES.items() for other in _others(name)} | ENTRIES
UNKNOWN = Entry(Kind.UNKNOWN, ("input",), None, {})
