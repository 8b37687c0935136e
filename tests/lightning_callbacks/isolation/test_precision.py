"""Explained in the precision that is validated, or in single precision."""

import pytest
import torch
from captum.attr import Saliency
from torch import nn

from lightning_callbacks import AttributionMonitor
from lightning_callbacks.isolation.precision import in_single_precision
from tests.lightning_callbacks.runs import fit


def explained_in(pl, options, **monitor_options):
    dtypes = set()

    class Recorded(Saliency):
        def attribute(self, inputs, **options):
            output = self.forward_func(inputs)
            dtypes.add((inputs.dtype, output.dtype))
            return super().attribute(inputs, **options)

    monitor = AttributionMonitor(
        {"saliency": Recorded}, num_samples=2, on_error="raise", **monitor_options
    )
    precision = options.pop("precision")
    trainer = fit(pl, options, monitor, precision=precision, max_epochs=1)
    return dtypes, trainer


@pytest.mark.both
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
    ],
)
def test_the_precision_of_the_trainer(pl, trainer_options, precision, dtype):
    dtypes, _ = explained_in(pl, {**trainer_options, "precision": precision})
    assert {output for _, output in dtypes} == {dtype}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_single_precision_where_the_trainer_has_half(pl, trainer_options, precision):
    dtypes, trainer = explained_in(
        pl, {**trainer_options, "precision": precision}, precision="float32"
    )
    assert dtypes == {(torch.float32, torch.float32)}
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    parameters = list(trainer.lightning_module.parameters())
    assert {parameter.dtype for parameter in parameters} == {expected}
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in parameters}


def test_single_precision_equals_a_float_copy_and_is_undone():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).bfloat16().eval()
    module[2].weight = module[0].weight
    held = [
        (name, id(tensor), tensor.clone())
        for name, tensor in module.state_dict(keep_vars=True).items()
    ]
    x = torch.randn(2, 4)
    results = []

    def fails():
        with in_single_precision(module):
            assert module[0].weight is module[2].weight
            results.append(module(x))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    for (name, identity, value), (name_now, now) in zip(
        held, module.state_dict(keep_vars=True).items(), strict=True
    ):
        assert (name, identity) == (name_now, id(now))
        assert torch.equal(value, now)
    assert torch.equal(results[0], module.float()(x))
