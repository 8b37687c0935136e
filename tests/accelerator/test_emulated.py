"""What the emulated accelerator shows of a real one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.accelerator.module import MODULE, NAME, Memory, reads

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _is_emulated(device):
    if device.type != NAME:
        pytest.skip("a real one")


class Everything(nn.Module):
    """Convolution, norms, attention, dropout, indices and an embedding."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.position = nn.Embedding(4, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        tokens = self.norm(self.patches(images)).flatten(2).transpose(1, 2)
        tokens = tokens + self.position(torch.arange(4, device=images.device))
        return self.head(self.block(tokens)[:, [0, 2]].mean(1))


def gradients(model, images):
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images), torch.tensor([1, 2], device=images.device))
    return torch.autograd.grad(loss, [images, *model.parameters()], allow_unused=True)


def test_a_model_trains_there_as_on_the_cpu(device):
    torch.manual_seed(0)
    model, images = Everything().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    there = copy.deepcopy(model).to(device)
    for on_cpu, found in zip(
        gradients(model, images), gradients(there, images.to(device)), strict=True
    ):
        assert type(found) is torch.Tensor
        assert found.device == device
        torch.testing.assert_close(found.cpu(), on_cpu)
    for parameter in there.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(there.parameters()).step()


def test_devices_are_not_mixed(device):
    there, here = torch.ones(3, device=device), torch.ones(3)
    for mixed in (torch.add, torch.mul, torch.dot, lambda a, b: torch.cat([a, b])):
        with pytest.raises(RuntimeError, match="device"):
            mixed(there, here)
        with pytest.raises(RuntimeError, match="device"):
            mixed(here, there)
    with pytest.raises(RuntimeError, match="device"):
        F.embedding(torch.tensor([0]), torch.ones(3, 2, device=device))
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]  # as on all devices
    assert there[torch.tensor([0, 2])].shape == (2,)
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()


def test_views_share_memory(device):
    whole = torch.zeros(3, 4, device=device)
    whole[1:].t()[2].add_(1)
    part = whole.view(-1).as_strided((2,), (5,), 1)
    part.fill_(7)
    expected = [[0, 7, 0, 0], [0, 0, 7, 0], [0, 0, 1, 0]]
    assert whole.tolist() == expected
    assert part.untyped_storage()._cdata == whole.untyped_storage()._cdata
    assert whole[2].untyped_storage().nbytes() == 4 * 12
    other = copy.deepcopy(whole)
    other.zero_()
    assert whole.tolist() == expected
    assert other.untyped_storage()._cdata != whole.untyped_storage()._cdata
    complex_ = torch.view_as_complex(torch.zeros(3, 2, device=device))
    complex_.imag.add_(2)
    assert complex_.tolist() == [2j] * 3


def test_writes_go_where_they_belong(device):
    values = torch.arange(4.0, device=device)
    same = values.add_(1)
    assert same is values
    out = torch.empty(0, device=device)
    torch.add(values, 1, out=out)
    assert out.tolist() == [2, 3, 4, 5]
    values[values > 2] = 0
    assert values.tolist() == [1, 2, 0, 0]
    assert values.unsqueeze_(0).shape == (1, 4)


def test_what_the_host_reads_is_counted(device):
    values = torch.arange(4.0, device=device)
    with reads() as nothing:
        (values * 2).sum().to(torch.float64)
        values[torch.tensor([0, 1], device=device)]
        values.to(device)
        torch.tensor([1.0, 2.0], device=device)
    assert not nothing
    for asks in (
        lambda: values.sum().item(),
        lambda: bool((values > 2).any()),
        values.tolist,
        values.cpu,
        values.nonzero,
        lambda: values[values > 2],
        lambda: torch.equal(values, values),
        lambda: torch.empty(4).copy_(values),
    ):
        with reads() as found:
            asks()
        assert found.total()
        assert "test_emulated.py:" in next(iter(found))


def test_random_numbers_are_its_own(device):
    here, there = torch.get_rng_state(), MODULE.get_rng_state()
    first = torch.rand(3, device=device)
    assert torch.get_rng_state().equal(here)
    assert not MODULE.get_rng_state().equal(there)
    MODULE.set_rng_state(there)
    assert torch.rand(3, device=device).equal(first)
    torch.manual_seed(3)
    drawn = torch.randn(5, device=device)
    torch.manual_seed(3)
    assert F.dropout(torch.ones(9, device=device)).sum() >= 0
    torch.manual_seed(3)
    assert torch.randn(5, device=device).equal(drawn)


def test_memory_is_counted_freed_and_limited(device, monkeypatch):
    before = Memory.allocated
    values = torch.ones(1000, device=device)
    view = values[3:]
    del values
    assert Memory.allocated == before + 4000
    del view
    assert Memory.allocated == before
    monkeypatch.setattr(Memory, "limit", before + 1000)
    with pytest.raises(torch.OutOfMemoryError):
        torch.ones(1000, device=device)
    assert Memory.allocated == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocasting(device, dtype):
    layer, values = nn.Linear(4, 4, device=device), torch.ones(2, 4, device=device)
    with torch.autocast(device.type, dtype):
        assert layer(values).dtype is dtype
        assert F.softmax(layer(values), -1).dtype is torch.float32
        assert F.scaled_dot_product_attention(*[values.view(1, 1, 2, 4)] * 3).dtype is dtype
        with torch.autocast(device.type, enabled=False):
            assert layer(values).dtype is torch.float32
    assert layer(values).dtype is torch.float32
