"""What may rightly take a share of relevance, by operator."""

from __future__ import annotations

from benchmarks.operators.database import Case

_CONSTANT = """
    add sub __radd__ __rsub__ rsub addmm addmm.decomposed addmv addr addbmm baddbmm addcmul addcdiv
    lerp cat stack hstack vstack dstack column_stack block_diag cartesian_prod where masked_scatter
    index_copy index_add index_put scatter scatter_add select_scatter slice_scatter
    diagonal_scatter as_strided_scatter put maximum minimum max.binary min.binary fmax fmin
    index_fill fill cdist dist outer nn.functional.scaled_dot_product_attention
    nn.functional.multi_head_attention_forward
"""
_FILLED = """
    masked_fill constant_pad_nd nn.functional.pad.constant fill index_fill where scatter
    _unsafe_masked_index tril triu diag diag_embed diagflat lu_unpack linalg.lu masked.sum
    masked.cumsum masked.norm
"""
_NOT_POSITIVE = """
    nn.functional.linear nn.functional.conv1d nn.functional.conv2d nn.functional.conv3d
    nn.functional.conv_transpose1d nn.functional.conv_transpose2d nn.functional.conv_transpose3d
    matmul mm mv bmm __rmatmul__ einsum tensordot inner dot vdot
"""
_REASONS = {
    "nothing speaks for the output": _NOT_POSITIVE,
    "constant operands": _CONSTANT,
    "values filled in": _FILLED,
}


def taker_of(case: Case) -> str | None:
    """What takes a share beside the operands that are explained; None if all is theirs."""
    name = case.name.partition(":")[0]
    for reason, names in _REASONS.items():
        if name in names.split() and (reason != "constant operands" or case.has_constants):
            return reason
    return None
