"""A sequence that is read token by token, over a cache of keys and values."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import AttentionRollout, GenericAttentionRelevance, RawAttention

TOKENS, WIDTH, HEADS = 5, 8, 2


def appended(cache, new):
    return new if cache is None else torch.cat([cache, new], 2)


def kept_apart(cache, new):
    """All tokens so far, one tensor each, as some caches keep pages."""
    pages = [] if cache is None else list(cache.unbind(2))
    return torch.stack([*pages, *new.unbind(2)], 2)


def written(cache, new):
    """A buffer that has room for all tokens."""
    seen = 0 if cache is None else cache.shape[2]
    buffer = new.new_zeros(len(new), HEADS, TOKENS, new.shape[-1])
    if cache is not None:
        buffer[:, :, :seen] = cache
    buffer[:, :, seen : seen + new.shape[2]] = new
    return buffer[:, :, : seen + new.shape[2]]


def copied(cache, new):
    """The same with room for all tokens that stays as it is, as in a static cache."""
    seen = 0 if cache is None else cache.shape[2]
    places = torch.arange(seen, seen + new.shape[2])
    buffer = new.new_zeros(len(new), HEADS, TOKENS, new.shape[-1])
    if cache is not None:
        buffer[:, :, :seen] = cache
    return buffer.index_copy_(2, places, new)[:, :, : places[-1] + 1]


def padded_and_added(cache, new):
    if cache is None:
        return new
    return F.pad(cache, (0, 0, 0, new.shape[2])) + F.pad(new, (0, 0, cache.shape[2], 0))


CACHES = {f.__name__: f for f in (appended, kept_apart, written, copied, padded_and_added)}


class Decoder(nn.Module):
    """Causal attention; reads some tokens, then some more.

    Args:
        steps: how many tokens it reads at a time.
        cached: how new keys or values join those before.
    """

    def __init__(self, steps=(TOKENS,), cached=appended):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))
        self.mlps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)
        self.steps, self.cached = steps, cached

    def forward(self, x):
        caches = [(None, None)] * len(self.blocks)
        for y in x.split(self.steps, 1):
            for layer, block in enumerate(self.blocks):
                parts = block(y).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
                query, *new = parts.unbind()
                pairs = zip(caches[layer], new, strict=True)
                keys, values = caches[layer] = [self.cached(*pair) for pair in pairs]
                before = keys.shape[2] - y.shape[1]
                mask = torch.ones(y.shape[1], keys.shape[2]).tril(before).bool()
                attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
                y = y + attended.transpose(1, 2).flatten(2)
                y = y + self.mlps[layer](y).relu()
        return self.head(y[:, -1])


METHODS = {
    "rollout": AttentionRollout,
    "rollout with identity": lambda m: AttentionRollout(m, with_identity=True),
    "generic": GenericAttentionRelevance,
    "raw": RawAttention,
}


@pytest.fixture
def x():
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


AT_A_TIME = [[1] * TOKENS, [3, 1, 1], [2, 3]]


@pytest.mark.parametrize("steps", AT_A_TIME, ids=str)
@pytest.mark.parametrize("cached", CACHES)
@pytest.mark.parametrize("method", METHODS)
def test_as_all_at_once(method, steps, cached, x):
    make = METHODS[method]
    expected = make(Decoder()).attribute_tokens(x, 1)
    found = make(Decoder(steps, CACHES[cached])).attribute_tokens(x, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    if method == "rollout with identity":
        torch.testing.assert_close(found.sum(1), torch.ones(2))
