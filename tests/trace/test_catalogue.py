"""The table of torch functions agrees with torch's own description of them."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from captum_transformer.trace.catalogue import ENTRIES
from captum_transformer.trace.entries import ALIASES
from captum_transformer.trace.functions import _PUBLIC, describe
from captum_transformer.trace.kinds import Kind


def canonical(name, entry):
    return entry.aliases.get(name) or ALIASES.get(name, name)


def overloads(name):
    """The names of the arguments of each of a function's overloads in ATen."""
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    taken = ([a.name for a in schema.arguments if not a.is_out] for schema in schemas)
    return [names for names in taken if names and "generator" not in names]


# Scripted integers; a function of Python's whose dimensions are one argument.
UNLIKE = ("floordiv", "tensordot")
KNOWN = {n: e for n, e in ENTRIES.items() if e.kind not in (Kind.ASKS, Kind.DATA)}


@pytest.mark.parametrize("name", [name for name in KNOWN if overloads(name) and name not in UNLIKE])
def test_arguments_are_called_as_in_aten(name):
    """The first one, on which a method is called, may have a name of its own."""
    entry = KNOWN[name]
    given = [tuple(canonical(n, entry) for n in names) for names in overloads(name)]
    wanted = entry.parameters
    assert any(names[1 : len(wanted)] == wanted[1 : len(names)] for names in given)


FUNCTIONALS = {
    name: function
    for name in KNOWN
    if inspect.isfunction(function := getattr(F, name, None)) and function.__module__ == F.__name__
}


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_functionals_have_all_arguments_of_the_table(name):
    """They may come in another order."""
    found = describe(FUNCTIONALS[name]).entry.parameters
    entry = KNOWN[name]
    required = [p for p in entry.parameters if p in ("input", "index", "dim", "weight")]
    assert set(required) <= set(found), (found, entry.parameters)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "bound"),
    [
        (torch.softmax, (1, 2), {}, {"input": 1, "dim": 2}),
        (F.softmax, (1,), {"dim": 2}, {"input": 1, "dim": 2}),
        (torch.Tensor.sum, (1,), {"axis": (0, 1)}, {"input": 1, "dim": (0, 1)}),
        (torch.Tensor.permute, (1, 2, 0, 1), {}, {"input": 1, "dims": (2, 0, 1)}),
        (torch.Tensor.permute, (1, (2, 0, 1)), {}, {"input": 1, "dims": (2, 0, 1)}),
        (torch.Tensor.__rsub__, (1, 2), {}, {"other": 1, "input": 2}),
        (torch.rsub, (), {"input": 1, "other": 2}, {"other": 1, "input": 2}),
        (torch.Tensor.__rmatmul__, (1, 2), {}, {"other": 1, "input": 2}),
        (torch.Tensor.__rdiv__, (1, 2), {}, {"other": 1, "input": 2}),
        (torch.addmm, (1, 2, 3), {}, {"bias": 1, "input": 2, "other": 3}),
        (F.embedding, (1, 2), {}, {"index": 1, "weight": 2}),
        (torch.embedding, (1, 2), {}, {"weight": 1, "index": 2}),
        (F.batch_norm, (1, 2, 3), {}, {"input": 1, "running_mean": 2, "running_var": 3}),
        (torch.batch_norm, (1, 2, 3), {}, {"input": 1, "weight": 2, "bias": 3}),
        (torch.where, (1, 2, 3), {}, {"mask": 1, "input": 2, "other": 3}),
        (torch.Tensor.__setitem__, (1, 2, 3), {}, {"input": 1, "brackets": 2, "source": 3}),
        (torch.einsum, ("ab->b", 1), {}, {"equation": "ab->b", "operands": (1,)}),
    ],
)
def test_calls_are_bound_to_canonical_arguments(function, args, kwargs, bound):
    assert describe(function).bind(args, kwargs) == bound


def test_functions_outside_of_the_table_are_unknown():
    assert describe(torch.special.airy_ai).kind is Kind.UNKNOWN


SPELLINGS = [
    (torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__),
    (torch.mul, torch.multiply, torch.Tensor.mul_, torch.Tensor.__imul__, torch.Tensor.__rmul__),
    (torch.matmul, torch.Tensor.__matmul__, torch.linalg.matmul, torch.mm, torch.mv, torch.dot),
    (F.relu, torch.relu, torch.relu_, torch.Tensor.relu_, torch.Tensor.relu),
    (F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool2d),
]


@pytest.mark.parametrize("spellings", SPELLINGS, ids=lambda s: s[0].__name__)
def test_all_spellings_are_of_one_kind(spellings):
    assert len({describe(function).kind for function in spellings}) == 1


# What a kernel has under no name of the table: it is that of another overload, or only torch's.
_OF_TORCH_ALONE = {"dim", "keepdim", "reduce", "dtype"}
_IN_ANOTHER_WAY = {"einsum", "tensordot", "scatter", "where", "repeat_interleave", "to"}


def test_kernels_have_the_arguments_of_their_functions() -> None:
    for name in sorted(_PUBLIC - _IN_ANOTHER_WAY):
        entry, packet = ENTRIES[name], getattr(torch.ops.aten, name, None)
        if entry.kind is Kind.ASKS or packet is None:
            continue
        for overload in (getattr(packet, called) for called in packet.overloads()):
            function = describe(overload)
            of_tensors = any("Tensor" in str(a.type) for a in overload._schema.arguments)
            # Old versions of PyTorch have dimensions with names, in arguments of their own.
            of_names = "Dimname" in overload._overloadname
            if function.kind is Kind.UNKNOWN or not of_tensors or of_names:
                continue
            expected = {*entry.parameters, *([entry.rest] if entry.rest else [])}
            assert expected - _OF_TORCH_ALONE <= {*function.entry.parameters}, str(overload)
            assert len({*function.entry.parameters}) == len(function.entry.parameters), str(
                overload
            )
