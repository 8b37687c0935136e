"""Torch's own operators whose output depends on the input and whose derivative is zero, or none."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.operators.database import OPERATORS, _of_sample, op_db, samples
from benchmarks.operators.verdicts import outcomes
from captum_transformer import ConservativeLRP
from captum_transformer.errors import ExplanationError

PLACES = 3


def points(tensors):
    """The tensors, and others of their size."""
    generator = torch.Generator().manual_seed(0)
    yield tensors
    for _ in range(PLACES):
        yield [x + torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in tensors]


def is_step(case):
    """Whether it has another value elsewhere, and everywhere a derivative of zero."""
    values = []
    for tensors in points(case.inputs):
        entered = [tensor.clone().requires_grad_() for tensor in tensors]
        try:
            score = case(*entered)
            slopes = torch.autograd.grad(score, entered, allow_unused=True)
        except RuntimeError:
            continue
        if any(slope is not None and slope.any() for slope in slopes):
            return False
        values.append(score.detach())
    return any(not torch.equal(value, values[0]) for value in values)


# It gives entries that a signal chooses, to their places.
CHOOSES = {"max_pool2d_with_indices_backward"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - CHOOSES))
def test_step_functions_are_refused_by_gradients(name):
    info = OPERATORS[name]
    sample = next(samples(info, requires_grad=True))
    for case in _of_sample(info, sample, name):
        if case.is_usable and is_step(case):
            assert outcomes(case)["ConservativeLRP"].kind == "refused"


def test_steps_are_found():
    info = OPERATORS["floor"]
    sample = next(samples(info, requires_grad=True))
    assert all(map(is_step, _of_sample(info, sample, "floor")))


class Asked:
    """The answers of an operator, without a derivative, as features beside a signal."""

    def __init__(self, info, sample):
        self.info = info
        self.leaves, self.structure = pytree.tree_flatten(
            (sample.input, sample.args, sample.kwargs)
        )
        self.places = [
            place
            for place, leaf in enumerate(self.leaves)
            if isinstance(leaf, Tensor) and leaf.dtype is torch.float64 and leaf.numel()
        ]

    def answers(self, x):
        leaves = list(self.leaves)
        leaves[self.places[0]] = x
        torch.default_generator.manual_seed(0)
        given, args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        results = pytree.tree_leaves(self.info.op(given, *args, **kwargs))
        return [r for r in results if isinstance(r, Tensor) and not r.requires_grad and r.numel()]

    def __call__(self, x):
        x = x.squeeze(0)
        score = x.sum()
        for answer in self.answers(x.clone()):
            features = answer.reshape(1, -1).to(torch.float64)
            weights = torch.linspace(0.5, 1.5, features.shape[1], dtype=torch.float64)
            score = score + (features @ weights[:, None]).sum()
        return score.reshape(1)

    def depends(self):
        found = []
        for (x,) in points([self.leaves[self.places[0]].detach()]):
            try:
                found.append(self.answers(x.clone().requires_grad_() * 1.0))
            except (RuntimeError, ValueError):
                continue
        first = found[0] if found else []
        return any(
            len(other) != len(first)
            or any(
                a.shape != b.shape or not torch.equal(a, b)
                for a, b in zip(first, other, strict=True)
            )
            for other in found
        )


def asked():
    for info in op_db:
        on_cpus = torch.float64 in info.supported_dtypes("cpu")
        if not on_cpus or info.name.startswith("jiterator"):  # which is for GPUs
            continue
        name = ".".join(filter(None, (info.name, info.variant_test_name)))
        yield pytest.param(info, id=name)


# What they give is no number, or not of the signal.
NO_ANSWERS = {"empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("info", list(asked()))
def test_functions_without_a_derivative_are_refused_as_features(info):
    if info.name in NO_ANSWERS:
        return
    for sample in itertools.islice(samples(info, requires_grad=False), 1):
        case = Asked(info, sample)
        if not case.places or not case.depends():
            continue
        x = case.leaves[case.places[0]].detach().unsqueeze(0)
        if not case.answers(x[0].clone().requires_grad_() * 1.0):
            continue
        explain = ConservativeLRP(case, attention_rule=False, layer_norm_rule=False)
        with pytest.raises(ExplanationError):
            explain.attribute(x)
