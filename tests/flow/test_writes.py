"""What is written, added or moved at indices: each signal gets the shares of its own entries."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.calling import Arguments
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow
from captum_transformer.rules.ledger import Audit
from captum_transformer.trace import traced_forward

INDEX, ROWS = torch.tensor([4, 1]), torch.tensor([[4, 1, 1], [0, 2, 4]])
MASK = torch.tensor([True, False, True, False, False])


def _put(accumulate):
    return lambda a, b: a.put(torch.arange(6), b, accumulate=accumulate)


def _in_place(write):
    """A write into a tensor that some other operation has made."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        result = a * 1
        write(result, b)
        return result

    return run


WRITES = {
    "index_add": lambda a, b: a.index_add(0, INDEX, b),
    "index_add, subtracted": lambda a, b: a.index_add(0, INDEX, b, alpha=-2),
    "index_add_": _in_place(lambda a, b: a.index_add_(0, INDEX, b, alpha=-1)),
    "index_copy": lambda a, b: a.index_copy(0, INDEX, b),
    "index_copy_": _in_place(lambda a, b: a.index_copy_(0, INDEX, b)),
    "index_put": lambda a, b: a.index_put((INDEX,), b),
    "index_put, added": lambda a, b: a.index_put((INDEX,), b, accumulate=True),
    "put": _put(accumulate=False),
    "put, added": _put(accumulate=True),
    "put_": _in_place(lambda a, b: a.put_(torch.arange(6), b)),
    "scatter": lambda a, b: a.scatter(0, ROWS, b),
    "scatter_add": lambda a, b: a.scatter_add(0, ROWS, b),
    "scatter_reduce": lambda a, b: a.scatter_reduce(0, ROWS, b, "sum"),
    "scatter_reduce, without itself": lambda a, b: a.scatter_reduce(
        0, ROWS, b, "sum", include_self=False
    ),
    "masked_scatter": lambda a, b: a.masked_scatter(MASK[:, None], b),
    "slice_scatter": lambda a, b: a.slice_scatter(b, 0, 1, 5, 2),
    "select_scatter": lambda a, b: a.select_scatter(b[0], 0, 3),
    "diagonal_scatter": lambda a, b: a.diagonal_scatter(b[0]),
    "setitem": _in_place(lambda a, b: a.__setitem__(slice(1, 3), b)),
    "setitem, a column": _in_place(lambda a, b: a.__setitem__((slice(0, 2), 1), b[:, 0])),
    "copy_ into a view": _in_place(lambda a, b: a[1:3].copy_(b)),
    "add_ to a view": _in_place(lambda a, b: a[1:3].add_(b)),
    "where": lambda a, b: torch.where(MASK[:, None], a, F.pad(b, (0, 0, 1, 2))),
    "cat": lambda a, b: torch.cat([a, b]),
    "pad": lambda a, b: F.pad(torch.cat([a, b]), (1, 0, 0, 2)),
    "pad and sum": lambda a, b: a + F.pad(b, (0, 0, 3, 0)),
}


def reached(write, tensors, signals, share):
    """What of a share of each entry reaches the signals, and what is taken."""
    inputs = tuple(tensors[place][None] for place in signals)
    written = []

    def run(*given: Tensor) -> Tensor:
        operands = list(tensors)
        for place, tensor in zip(signals, given, strict=True):
            operands[place] = tensor.squeeze(0)
        written.append(write(*operands))
        return written[0].sum().reshape(1)

    with traced_forward(run, Arguments(inputs), keep=KEEP) as forward:
        audit = Audit()
        seeds = {forward.tape.find(written[0]): share}
        found = TokenFlow(forward.tape, {})(seeds, forward.values, audit)
        audit.blame()
        assert audit.balances()
        taken = {reason: float(amount.sum()) for _, reason, amount in audit.taken if amount.any()}
        return [found[value][0] for value in forward.values], taken


def expected(write, tensors, place, share):
    """Each entry's share goes to what it is made of; what has nothing of the signal keeps it."""

    def of_signal(tensor: Tensor) -> Tensor:
        return write(*(tensor if at == place else t for at, t in enumerate(tensors))).flatten()

    jacobian = torch.autograd.functional.jacobian(of_signal, tensors[place]).abs().flatten(1)
    among = jacobian.sum(1, keepdim=True)
    parts = share.reshape(-1, 1) * jacobian / among.masked_fill(among == 0, 1)
    return parts.sum(0).view(tensors[place].shape)


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return torch.randn(5, 3).double(), torch.randn(2, 3).double()


@pytest.fixture
def share():
    return torch.rand(9, 3, generator=torch.Generator().manual_seed(1)).double()


def of_rows(share, write, tensors):
    """A share for each entry of what comes out."""
    rows, columns = write(*tensors).shape
    return share.repeat(1, 2)[:rows, :columns]


@pytest.mark.parametrize("name", WRITES)
def test_each_of_two_signals_gets_its_entries(name, tensors, share):
    write = WRITES[name]
    share = of_rows(share, write, tensors)
    found, _ = reached(write, tensors, (0, 1), share)
    for place in (0, 1):
        torch.testing.assert_close(found[place], expected(write, tensors, place, share))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", WRITES)
def test_constants_take_what_is_theirs(name, place, tensors, share):
    write = WRITES[name]
    share = of_rows(share, write, tensors)
    (found,), taken = reached(write, tensors, (place,), share)
    wanted = expected(write, tensors, place, share)
    torch.testing.assert_close(found, wanted)
    assert taken.keys() <= {Reason.JOINED, Reason.CONSTANT, Reason.FILLED}
    assert sum(taken.values()) == pytest.approx(float(share.sum() - wanted.sum()), abs=1e-9)


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1)])
def test_as_strided_scatter(places, tensors, share):
    """Torch's derivative is wrong: what is written over has one, and what is kept has none."""
    kept = torch.tensor([1.0, 0, 1, 0, 1], dtype=torch.float64)[:, None]
    wanted = [share[:5] * kept, share[1:5:2]]

    def write(a: Tensor, b: Tensor) -> Tensor:
        return a.as_strided_scatter(b, (2, 3), (6, 1), 3)

    found, _ = reached(write, tensors, places, share[:5])
    torch.testing.assert_close(found, [wanted[place] for place in places])
