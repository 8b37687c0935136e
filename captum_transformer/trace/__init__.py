"""Seeing every operation of an unmodified model's forward pass, and its attention calls."""

from captum_transformer.trace.attention import AttentionCall, ExplicitAttention, FusedAttention
from captum_transformer.trace.forward import TracedForward, traced_forward
from captum_transformer.trace.mode import Trace
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.recorder import ForwardRule, ForwardRules
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

__all__ = [
    "AttentionCall",
    "ExplicitAttention",
    "ForwardRule",
    "ForwardRules",
    "FusedAttention",
    "Operand",
    "Operation",
    "Tape",
    "Trace",
    "TracedForward",
    "Value",
    "traced_forward",
]
