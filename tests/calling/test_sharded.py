"""With sharded weights, methods that read no weights are exact, and the others are refused."""

import tempfile
from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from captum_transformer.errors import UnsupportedOperationError
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import embeddings, encoder
from tests.lightning_callbacks.processes import alone, needs_fork, side_by_side

READ_WEIGHTS = [name for name in METHODS if "Transformer" in name or "Partial" in name]
READ_WEIGHTS += ["full LRP"]


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    with tempfile.NamedTemporaryFile() as file:
        where = f"file://{file.name}"
        distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
        yield init_device_mesh("cpu", (1,))
        distributed.destroy_process_group()


def sharded(mesh: DeviceMesh) -> tuple[nn.Module, list[nn.Module]]:
    model = encoder().eval()
    parts = [*model.encoder.layers, model]
    for part in parts:
        fully_shard(part, mesh=mesh)
    return model, parts


@pytest.mark.parametrize("method", METHODS)
def test_fully_sharded(mesh: DeviceMesh, method: str) -> None:
    model, parts = sharded(mesh)
    explain = METHODS[method](model)
    expected = METHODS[method](encoder()).attribute(embeddings(), 1)

    if method not in READ_WEIGHTS:
        assert_close(explain.attribute(embeddings(), 1), expected)
        return
    with pytest.raises(UnsupportedOperationError, match="in_proj_weight' is sharded") as caught:
        explain.attribute(embeddings(), 1)

    # What it advises.
    assert "unshard()" in str(caught.value)
    for part in parts:
        part.set_reshard_after_forward(False)
        part.set_reshard_after_backward(False)
        part.unshard()
    assert_close(explain.attribute(embeddings(), 1), expected)
    for part in parts:
        part.reshard()
    assert_close(model(embeddings()), encoder().eval()(embeddings()))


class MLP(nn.Module):
    """Attention without weights, and a block whose weights may be spread over processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.softmax(x @ x.mT, -1) @ x
        return self.head((x + self.down(self.up(x).relu())).mean(1))


@pytest.mark.parametrize("method", METHODS)
def test_tensor_parallel(mesh: DeviceMesh, method: str) -> None:
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(MLP().double().eval(), mesh, plan)
    explain = METHODS[method](model)

    with pytest.raises(UnsupportedOperationError, match=r"[Tt]ensor parallelism.*whole weights"):
        explain.attribute(embeddings(), 1)


# --- two processes, where the memory of weights is given back in between


class Gated(nn.Module):
    """A block with scales that are parameters, as in an RMSNorm that is written in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        x = x + torch.softmax(y @ y.mT, -1) @ y
        return x + self.down(self.up(x).relu())


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(Gated(), Gated())
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x)[:, 0])


def _explain_sharded(rank: int) -> None:
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    model = Blocks().double().eval()
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    for name, method in METHODS.items():
        explain = method(model)
        if name in READ_WEIGHTS:
            with pytest.raises(UnsupportedOperationError, match="is sharded"):
                explain.attribute(embeddings(), 1)
        else:
            expected = method(Blocks().double().eval()).attribute(embeddings(), 1)
            assert_close(explain.attribute(embeddings(), 1), expected)
    distributed.destroy_process_group()


@needs_fork
@pytest.mark.slow
def test_two_processes() -> None:
    alone(side_by_side, _explain_sharded, 2)
