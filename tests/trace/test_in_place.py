"""In-place operations and views are traced like the same operations out of place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer import ConservativeLRP, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.calling import Arguments
from captum_transformer.errors import UnseenOperationError
from captum_transformer.trace import traced_forward
from captum_transformer.trace.functions import Kind
from tests.trace.attention_forms import attending, embeddings


@pytest.fixture
def x() -> Tensor:
    return embeddings()


def add_in_place(x):
    y = x * 2
    z = y + x
    y += 1
    y.mul_(3)
    return z + y


def add_out_of_place(x):
    y = x * 2
    return (y + x) + (y + 1) * 3


def write_into_view(x):
    y = x.clone()
    view = y[:, 1:3]
    view.mul_(2)
    view += x[:, :2]
    return y * y


def write_without_view(x):
    middle = x[:, 1:3] * 2 + x[:, :2]
    y = torch.cat([x[:, :1], middle, x[:, 3:]], 1)
    return y * y


def read_stale_view(x):
    y = x.clone()
    view = y.transpose(0, 1)
    y[:, 0] = x[:, 1]
    y[:, 1] += 1
    return view.transpose(0, 1) + x


def read_fresh(x):
    y = torch.cat([x[:, 1:2], x[:, 1:2] + 1, x[:, 2:]], 1)
    return y + x


def fill_buffer(x):
    buffer = torch.zeros(x.shape[0], 8, x.shape[2], dtype=x.dtype)
    part = buffer[:, 1:6]
    part.copy_(x)
    buffer[:, 6] = x[:, 0]
    return F.relu(buffer, inplace=True)


def concatenate(x):
    zero = torch.zeros_like(x[:, :1])
    return F.relu(torch.cat([zero, x, x[:, :1], zero], 1))


@pytest.mark.parametrize(
    ("in_place", "out_of_place"),
    [
        (add_in_place, add_out_of_place),
        (write_into_view, write_without_view),
        (read_stale_view, read_fresh),
        (fill_buffer, concatenate),
    ],
)
def test_writing_in_place_changes_no_relevance(in_place, out_of_place, x):
    written, plain = attending(in_place), attending(out_of_place)
    torch.testing.assert_close(written(x), plain(x))
    for method in (
        GenericAttentionRelevance(written),
        TransformerAttribution(written, propagate_to_input=True),
        ConservativeLRP(written),
    ):
        expected = type(method)(plain)
        if isinstance(method, TransformerAttribution):
            expected.propagate_to_input = True
        torch.testing.assert_close(
            method.attribute(x, target=1), expected.attribute(x, target=1), rtol=1e-6, atol=1e-9
        )


def test_saved_operands_keep_their_values(x):
    def overwrite(x):
        y = x + 1
        z = y * 2 + y
        y.zero_()
        return z

    model = attending(overwrite)
    with traced_forward(model, Arguments(x), keep=frozenset(Kind)) as forward:
        additions = [o for o in forward.tape.operations if o.name == "add"]
        held = additions[1].operands[1].tensor
    torch.testing.assert_close(held, x + 1)


def test_writing_through_data_is_refused(x):
    def assign(x):
        y = x * 1
        y.data = torch.zeros_like(y)
        return y

    with pytest.raises(UnseenOperationError, match=r"`\.data`"):
        GenericAttentionRelevance(attending(assign)).attribute(x, target=0)
