"""The relevance of a sample's score stays in the sample, or is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    GenericAttentionRelevance,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.errors import MixedSamplesError, UnsupportedOperationError

SAMPLES, TOKENS, WIDTH = 3, 4, 8


PACKED = {
    "differences of a cumsum": lambda z, ends: torch.diff(
        z.cumsum(0)[ends], dim=0, prepend=torch.zeros_like(z[:1])
    ),
    "steps of a triangular product": lambda z, ends: torch.diff(
        (torch.ones(len(z), len(z)).tril() @ z)[ends], dim=0, prepend=torch.zeros_like(z[:1])
    ),
    "all but the others": lambda z, ends: torch.stack(
        [z.sum(0) - z[: end + 1 - TOKENS].sum(0) - z[end + 1 :].sum(0) for end in map(int, ends)]
    ),
}


@pytest.mark.parametrize("spelling", PACKED)
@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, AttentionRollout, RawAttention, AttentionGradCam]
)
def test_shares_of_sums_that_cancel_are_not_handed_to_other_samples(method, spelling):
    """Each score depends on its own sample alone, but what it is made of does not."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True, dropout=0.0)
    head, x = nn.Linear(WIDTH, 3), torch.randn(SAMPLES, TOKENS, WIDTH)

    def model(x):
        ends = torch.arange(1, len(x) + 1) * TOKENS - 1
        return head(PACKED[spelling](encoder(x).flatten(0, 1), ends))

    with pytest.raises(MixedSamplesError, match="internal_batch_size=1"):
        method(model).attribute_tokens(x, 1)
    alone = method(model).attribute_tokens(x, 1, internal_batch_size=1)
    expected = torch.cat([method(model).attribute_tokens(one, 1) for one in x.split(1)])
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-5)


KEPT = {
    "picked and summed": lambda z, rows: torch.zeros(SAMPLES, WIDTH).index_add(0, rows, z),
    "joined and split": lambda z, rows: torch.stack([z[rows == n].sum(0) for n in range(SAMPLES)]),
    "a matrix of ones": lambda z, rows: torch.eye(SAMPLES)[rows].mT @ z,
}


@pytest.mark.parametrize("spelling", KEPT)
@pytest.mark.parametrize("method", [GenericAttentionRelevance, RawAttention])
def test_packed_tokens_of_known_samples(method, spelling):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True, dropout=0.0)
    head, x = nn.Linear(WIDTH, 3), torch.randn(SAMPLES, TOKENS, WIDTH)
    rows = torch.arange(SAMPLES).repeat_interleave(TOKENS)
    packed = method(lambda x: head(KEPT[spelling](encoder(x).flatten(0, 1), rows)))
    expected = method(lambda x: head(encoder(x).sum(1))).attribute_tokens(x, 1)
    torch.testing.assert_close(packed.attribute_tokens(x, 1), expected, rtol=1e-3, atol=1e-5)


PADDED = {
    "before": lambda f, x: f(F.pad(x, (0, 0, 0, 0, 0, 5))).mean(1)[: len(x)],
    "joined to zeros": lambda f, x: f(torch.cat([x, torch.zeros(5, *x.shape[1:])])).mean(1)[
        : len(x)
    ],
    "behind": lambda f, x: F.pad(f(x), (0, 0, 0, 0, 0, 5)).mean(1)[: len(x)],
    "in front": lambda f, x: f(F.pad(x, (0, 0, 0, 0, 5, 0))).mean(1)[5:],
}


@pytest.mark.parametrize("spelling", PADDED)
def test_pooled_tokens_beside_padding_rows_are_refused_in_batches(spelling):
    """Where samples lie among rows that are none is not known, so what is pooled is refused."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True, dropout=0.0)
    head, x = nn.Linear(WIDTH, 3), torch.randn(SAMPLES, TOKENS, WIDTH)
    padded = GenericAttentionRelevance(lambda x: head(PADDED[spelling](encoder, x)))
    expected = GenericAttentionRelevance(lambda x: head(encoder(x).mean(1))).attribute(x, 1)
    with pytest.raises(UnsupportedOperationError, match="internal_batch_size=1"):
        padded.attribute(x, 1)
    found = padded.attribute(x, 1, internal_batch_size=1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


LENGTHS = (4, 2, 3)
SPLIT = {
    "means": lambda z, lengths, head: head(torch.stack([one.mean(0) for one in z.split(lengths)])),
    "means that are joined": lambda z, lengths, head: head(
        torch.cat([one.mean(0, keepdim=True) for one in z.split(lengths)])
    ),
    "maxima": lambda z, lengths, head: head(torch.stack([one.amax(0) for one in z.split(lengths)])),
    "means of scores": lambda z, lengths, head: torch.stack(
        [one.mean(0) for one in head(z).split(lengths)]
    ),
    "slices": lambda z, lengths, head: head(
        torch.stack(
            [
                z[sum(lengths[:place]) : sum(lengths[: place + 1])].mean(0)
                for place in range(len(lengths))
            ]
        )
    ),
}


@pytest.mark.parametrize("spelling", SPLIT)
def test_tokens_that_a_mask_picks_and_lengths_split_are_pooled_alike_in_batches(spelling):
    """Evidence of pooled tokens was left out in batches, where nothing says whose they are."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True, dropout=0.0)
    head, x = nn.Linear(WIDTH, 3), torch.randn(SAMPLES, TOKENS, WIDTH)
    mask = torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]

    def model(x, mask):
        tokens = encoder(x, src_key_padding_mask=~mask)[mask]
        return SPLIT[spelling](tokens, mask.sum(1).tolist(), head)

    method = GenericAttentionRelevance(model)
    with pytest.raises(UnsupportedOperationError, match="internal_batch_size=1"):
        method.attribute_tokens(x, 1, mask)
    found = method.attribute_tokens(x, 1, mask, internal_batch_size=1)
    for one, length, relevance in zip(x, LENGTHS, found, strict=True):
        short, whole = one[None, :length], torch.ones(1, length, dtype=torch.bool)
        expected = method.attribute_tokens(short, 1, whole)[0]
        torch.testing.assert_close(relevance[:length], expected, rtol=1e-3, atol=1e-5)
    without = GenericAttentionRelevance(model, pooled_evidence=False)
    together = without.attribute_tokens(x, 1, mask)
    alone = without.attribute_tokens(x, 1, mask, internal_batch_size=1)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


def test_experts_that_pick_tokens_of_all_samples_pool_nothing():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True, dropout=0.0)
    experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
    head, x = nn.Linear(WIDTH, 3), torch.randn(SAMPLES, TOKENS, WIDTH)

    def model(x):
        tokens = encoder(x).flatten(0, 1)
        chosen, mixed = (tokens[:, 0] > 0).long(), tokens
        for number, expert in enumerate(experts):
            (rows,) = torch.where(chosen == number)
            mixed = mixed.index_add(0, rows, expert(tokens[rows]))
        return head(mixed.view_as(x)[:, 0])

    method = GenericAttentionRelevance(model)
    expected = torch.cat([method.attribute(one, 1) for one in x.split(1)])
    assert expected.any()
    torch.testing.assert_close(method.attribute(x, 1), expected, rtol=1e-3, atol=1e-5)


def test_a_learned_token_that_is_picked_from_another_sample() -> None:
    """As in TimeSformer: the token of each frame is the same, and the first ones are taken."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True, dropout=0.0)
    token, places = torch.randn(1, 1, WIDTH), torch.randn(1, TOKENS + 1, WIDTH)
    head, x = nn.Linear(WIDTH, 3), torch.randn(SAMPLES, 2, TOKENS, WIDTH)

    def model(x):
        frames = x.flatten(0, 1)
        frames = torch.cat([token.expand(len(frames), -1, -1), frames], 1) + places
        first = frames[: len(x), :1]
        tokens = torch.cat([first, frames[:, 1:].reshape(len(x), -1, WIDTH)], 1)
        return head(encoder(tokens)[:, 0])

    full = TransformerAttribution(model, propagate_to_input=True)
    with pytest.raises(MixedSamplesError, match="internal_batch_size=1"):
        full.attribute(x, 1)
    in_batches = AttnLRP(model), TransformerAttribution(model)
    for method, size in ((full, 1), *((one, None) for one in in_batches)):
        found = method.attribute(x, 1, internal_batch_size=size)
        expected = torch.cat([method.attribute(one, 1) for one in x.split(1)])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
