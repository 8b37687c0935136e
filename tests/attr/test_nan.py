"""NaN in a model or its inputs never gives a map without NaN."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.attr.subjects import METHODS

WIDTH, TOKENS = 8, 5


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x):
        return self.head(self.attend(self.attend(x)).mean(1))


@pytest.fixture
def x():
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attribute", ["attribute", "attribute_tokens"])
def test_nan_of_one_sample_is_its_own(method, attribute, x):
    explainer = METHODS[method](Model())
    expected = getattr(explainer, attribute)(x, 1)
    x[1, 2, 3] = torch.nan
    found = getattr(explainer, attribute)(x, 1)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["head", "qkv"])
def test_nan_of_weights(method, where, x):
    model = Model()
    getattr(model, where).weight.data[1, 0] = torch.nan
    assert METHODS[method](model).attribute(x, 1).isnan().any()
