"""For all of torch's operators, the known sample of each entry is right."""

import pytest
import torch
from torch.utils import _pytree as pytree

from benchmarks.operators.database import OPERATORS, cases
from captum_transformer.errors import ExplanationError
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.batch import Batch
from captum_transformer.trace.mode import Trace


def foreign_slopes(result, batch, entered):
    """The largest derivative of an entry at rows of a sample that is not its own."""
    numbers = batch.numbers(tuple(result.shape), torch.float64, result.device)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    largest = 0.0
    for sample in range(batch.of):
        others = (result * weights * (numbers != sample + 1)).sum()
        slopes = torch.autograd.grad(others, entered, retain_graph=True, allow_unused=True)
        found = [slope[sample].abs().max().item() for slope in slopes if slope is not None]
        largest = max([largest, *found])
    return largest


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of rare arguments
@pytest.mark.parametrize("name", OPERATORS)
def test_entries_depend_on_their_own_sample(name):
    for case in cases(name):
        shapes = [case.leaves[index].shape for index in case.signals]
        lengths = {shape[0] if shape else 0 for shape in shapes}
        if len(lengths) > 1 or min(lengths) < 2:
            continue
        (samples,) = lengths
        leaves = list(case.leaves)
        entered = [leaves[i].clone().requires_grad_() for i in case.signals]
        try:
            with Trace() as trace:
                for index, tensor in zip(case.signals, entered, strict=True):
                    leaves[index] = tensor.clone()
                    value = trace.enter_input(leaves[index])
                    value.batch = Batch(0, Axis.of(tensor.shape, 0), samples)
                operand, args, kwargs = pytree.tree_unflatten(leaves, case.structure)
                results = pytree.tree_leaves(case.operator(operand, *args, **kwargs))
        except ExplanationError:
            continue
        for result in results:
            if not isinstance(result, torch.Tensor) or result.is_complex() or not result.numel():
                continue
            value = trace.tape.find(result)
            if value is None:
                continue
            assert value.batch is not None or value.coupling is not None, case
            if value.coupling is None:
                assert foreign_slopes(result, value.batch, entered) == 0, case
