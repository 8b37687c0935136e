"""A module that FSDP2 shards is explained in its precision, also after a pass that has failed."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from captum.attr import Saliency
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from captum_transformer import TransformerAttribution
from lightning_callbacks.isolation.precision import in_single_precision
from lightning_callbacks.isolation.run_context import RunContext
from lightning_callbacks.isolation.sharded import unsharded
from tests.lightning_callbacks.isolation.sharded_trainings import (
    POLICIES,
    Breaks,
    BreaksBackward,
    vit,
)
from tests.lightning_callbacks.processes import alone, needs_fork

pytestmark = needs_fork


class OfWeights(Saliency):
    """Reads the gradients of parameters."""

    def attribute(self, inputs, target=None):
        self.forward_func(inputs)[:, target].sum().backward()
        return self.forward_func.model.patch_embed.proj.weight.grad.clone()


METHODS = {"saliency": Saliency, "of weights": OfWeights, "chefer": TransformerAttribution}
BREAKING = {"forward": Breaks, "backward": BreaksBackward}


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = vit().eval()

    def forward(self, x):
        return self.model(x)


def sharded(policy):
    module = Classifier()
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    options = {
        "mesh": init_device_mesh("cpu", (1,)),
        "mp_policy": MixedPrecisionPolicy(**POLICIES[policy]),
    }
    for part in (*module.model.blocks, module.model):
        fully_shard(part, **options)
    return module


def explained(module, broken=None, *, precise=False):
    """Returns the maps of methods, after one that fails in a pass, if any."""
    precision = partial(in_single_precision, module) if precise else nullcontext
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = images.to(next(module.parameters()).dtype)
    context = RunContext(module, module, torch.device("cpu"), lambda x: x, precision)

    def of(method):
        with context.undisturbed():
            return method(module).attribute(images, target=1).detach().float().numpy()

    with unsharded(module):
        if broken is not None:
            before = passes_of(module)
            with pytest.raises(RuntimeError, match=f"in the middle of a {broken} pass"):
                of(BREAKING[broken])
            assert passes_of(module) == before
        return {name: of(method) for name, method in METHODS.items()}


def passes_of(module):
    """Returns how far FSDP2 believes the passes of all parts to be."""
    states = [part._get_fsdp_state() for part in module.modules() if isinstance(part, FSDPModule)]
    return [
        (state._training_state, state._state_ctx.post_backward_final_callback_queued)
        for state in states
    ]


def after_a_failure(broken):
    return explained(sharded("bf16"), broken)


def without_a_failure(policy):
    return explained(sharded(policy))


@pytest.mark.parametrize("broken", BREAKING)
@pytest.mark.slow
def test_a_method_that_fails_restores_a_sharded_module(broken):
    assert_same_maps(alone(after_a_failure, broken), alone(without_a_failure, "bf16"))


@pytest.mark.parametrize(
    ("policy", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)], ids=["none", "bf16"]
)
def test_maps_are_those_of_a_whole_module_of_that_precision(policy, dtype):
    expected = explained(Classifier().to(dtype))
    assert_same_maps(alone(without_a_failure, policy), expected, dtype)


def in_single_precision_of(policy):
    return explained(sharded(policy), precise=True)


def test_single_precision_is_that_of_all_operations():
    expected = explained(Classifier().to(torch.bfloat16).float())
    assert_same_maps(alone(in_single_precision_of, "bf16"), expected)


def assert_same_maps(maps, expected, dtype=torch.float32):
    for name in METHODS:
        assert expected[name].any()
        # Maps have the precision of the inputs.
        of_both = (torch.from_numpy(each[name]).to(dtype) for each in (maps, expected))
        assert torch.equal(*of_both), name
