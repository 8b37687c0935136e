"""A sample's explanation is the same alone and in a batch, or the batch is refused."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.errors import (
    InvalidTargetError,
    MixedSamplesError,
    UnseenOperationError,
    UnsupportedOperationError,
)

METHODS = [
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
]
SAMPLES, TOKENS, WIDTH = 3, 4, 8


class Model(nn.Module):
    """A layer of attention; something happens to the samples before it and behind it."""

    def __init__(self, before=None, behind=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, SAMPLES)
        self.before, self.behind = before, behind
        self.double().eval()

    def forward(self, x):
        if self.before is not None:
            x = self.before(x)
        features = self.layer(x).mean(1)
        return self.head(features if self.behind is None else self.behind(features))


def inputs():
    return torch.randn(
        SAMPLES, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def assert_alone(model, method, target=1):
    together = method(model).attribute(inputs(), target)
    for sample, x in enumerate(inputs().split(1)):
        torch.testing.assert_close(together[sample : sample + 1], method(model).attribute(x, 1))


def _written(features):
    features = features.clone()
    features[1:] = features[:-1].clone()
    return features


MIXING = {
    "mean": lambda f: f - f.mean(0),
    "mean, kept": lambda f: f - f.mean(0, keepdim=True),
    "sum": lambda f: f + f.sum(0),
    "softmax": lambda f: f.softmax(0),
    "log-softmax": lambda f: f.log_softmax(0),
    "softmax by hand": lambda f: f.exp() / f.exp().sum(0),
    "statistics of the batch": lambda f: F.batch_norm(f, None, None, training=True),
    "statistics by hand": lambda f: (f - f.mean(0)) / (f.var(0) + 1e-5).sqrt(),
    "norm": lambda f: f / f.norm(dim=0),
    "norm over all": lambda f: F.layer_norm(f, f.shape),
    "largest": lambda f: f - f.max(),
    "largest of each": lambda f: f - f.amax(0),
    "log-sum-exp": lambda f: f - f.logsumexp(0),
    "running sum": lambda f: f.cumsum(0),
    "running product": lambda f: f.cumprod(0),
    "sort": lambda f: f.sort(0).values,
    "topk": lambda f: f.topk(len(f), 0).values,
    "roll": lambda f: f.roll(1, 0),
    "flip": lambda f: f.flip(0),
    "index": lambda f: f[torch.arange(len(f) - 1, -1, -1)],
    "index_select": lambda f: f.index_select(0, torch.arange(len(f)).roll(1)),
    "gather": lambda f: f.gather(0, torch.arange(len(f)).roll(1)[:, None].expand_as(f)),
    "cat": lambda f: torch.cat([f[1:], f[:1]]),
    "stack": lambda f: torch.stack(list(f)[::-1]),
    "first": lambda f: f + f[0],
    "pad": lambda f: F.pad(f, (0, 0, 1, -1)),
    "write": lambda f: f.clone().index_copy(0, torch.tensor([0]), f[-1:]),
    "in place": _written,
    "attention": lambda f: F.scaled_dot_product_attention(f, f, f),
    "attention by hand": lambda f: (f @ f.T).softmax(-1) @ f,
    "product": lambda f: torch.ones(len(f), len(f)).to(f) @ f,
    "einsum": lambda f: torch.einsum("nd,md->nd", f, f),
    "distance": lambda f: f + torch.cdist(f, f).sum(1, keepdim=True),
    "transform": lambda f: torch.fft.fft(f, dim=0).real,
    "add at indices": lambda f: f.index_add(0, torch.arange(len(f)).roll(1), f),
    "convolution": lambda f: F.conv1d(f.T[:, None], torch.ones(1, 1, 3).to(f), padding=1)[:, 0].T,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mixing", MIXING)
def test_samples_that_influence_each_other_are_refused(mixing, method):
    with pytest.raises(MixedSamplesError, match=r"score of sample . depends on sample ., through"):
        method(Model(behind=MIXING[mixing])).attribute(inputs(), 1)


def _by_masks(x):
    mask = torch.arange(TOKENS).remainder(2).bool().expand(len(x), -1)
    result = torch.zeros_like(x)
    result[mask] = x[mask] * 2
    result[~mask] = x[~mask] * 3
    return result


APART = {
    "list": lambda x: torch.stack([(sample - 0.5) / 0.5 for sample in x]),
    "chunks": lambda x: torch.cat([chunk * 2 for chunk in x.split(2)]),
    "by masks": _by_masks,
    "by each sample's mean": lambda x: x - x.mean((1, 2), keepdim=True),
    "tokens first": lambda x: x.transpose(0, 1).contiguous().softmax(0).transpose(0, 1),
    "merged": lambda x: x.flatten(0, 1).softmax(-1).unflatten(0, (-1, TOKENS)),
    "repeated": lambda x: x.repeat(2, 1, 1)[len(x) :],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", APART)
def test_samples_that_are_apart_are_explained_each_by_itself(way, method):
    assert_alone(Model(before=APART[way]), method)


@pytest.mark.parametrize("method", METHODS)
def test_samples_that_are_put_back_in_order_are_explained_or_refused(method):
    model = Model(before=lambda x: x.roll(1, 0).roll(-1, 0))
    if method in (TransformerAttribution, GenericAttentionRelevance):
        with pytest.raises(UnsupportedOperationError, match="Explain the samples one by one"):
            method(model).attribute(inputs(), 1)
    else:
        assert_alone(model, method)
    if method is GenericAttentionRelevance:
        assert_alone(model, partial(method, pooled_evidence=False))


@pytest.mark.parametrize("method", METHODS)
def test_views_beside_samples_are_explained_each_by_itself_or_refused(method):
    class Flipped(Model):
        def forward(self, x):
            both = super().forward(torch.cat([x, x.flip(-2)]) + 0.5)
            return both.view(2, len(x), -1).mean(0)

    if method in (TransformerAttribution, GenericAttentionRelevance):
        with pytest.raises(UnsupportedOperationError, match="Run the model once for each view"):
            method(Flipped()).attribute(inputs(), 1)
    else:
        assert_alone(Flipped(), method)


def test_a_forgotten_batch_first_is_named():
    model = Model()
    model.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0).double().eval()
    with pytest.raises(MixedSamplesError, match=r"in layer.self_attn.*`batch_first=True`"):
        GenericAttentionRelevance(model).attribute(inputs(), 1)
    one_by_one = GenericAttentionRelevance(model).attribute(inputs(), 1, internal_batch_size=1)
    assert one_by_one.shape == inputs().shape


@pytest.mark.parametrize("method", METHODS)
def test_token_ids_that_meet_in_a_batch_are_refused(method):
    model, table = Model(behind=lambda f: f - f.mean(0)), nn.Embedding(10, WIDTH).double()
    ids = torch.arange(12).view(3, 4) % 10
    with pytest.raises(MixedSamplesError, match="through `mean`"):
        method(lambda ids: model(table(ids))).attribute(ids, 1)
    with pytest.raises(MixedSamplesError, match="through `roll`"):
        method(lambda ids: Model()(table(ids.roll(1, 0)))).attribute(ids, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("pick", "target"),
    [
        (lambda logits: logits.t(), 1),
        (lambda logits: logits[0], None),
        (lambda logits: torch.stack([logits[1, 0], logits[1, 1], logits[1, 2]]), None),
    ],
)
def test_scores_of_another_axis_are_refused(pick, target, method):
    with pytest.raises(InvalidTargetError, match="selects 3 scores of sample"):
        method(lambda x: pick(Model()(x))).attribute(inputs(), target)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("pick", "target"),
    [
        (lambda logits: logits, [1, 1, 1]),
        (lambda logits: logits, torch.tensor([1, 1, 1])),
        (lambda logits: logits[:, None], (0, 1)),
        (lambda logits: logits[:, None], [(0, 1)] * 3),
        (lambda logits: logits[:, 1], None),
        (lambda logits: logits.t()[1], None),
        (lambda logits: torch.stack([row[1] for row in logits]), None),
        (lambda logits: (logits @ torch.eye(3).to(logits)).t()[1:2].t(), 0),
        (lambda logits: (logits[:, 1:2] * logits.new_ones(3)).diagonal(), None),
    ],
)
def test_each_way_of_picking_scores_is_of_the_samples(pick, target, method):
    together = method(lambda x: pick(Model()(x))).attribute(inputs(), target)
    torch.testing.assert_close(together, method(Model()).attribute(inputs(), 1))


@pytest.mark.filterwarnings("ignore:.*among channels")
def test_scores_of_pairs_are_checked():
    """Of all similarities in a batch those on the diagonal are the samples' own."""

    def similarities(x):
        features = F.normalize(Model()(x), dim=-1)
        return features @ F.normalize(features.exp(), dim=-1).t()

    with pytest.raises(MixedSamplesError, match="through `matmul`"):
        GenericAttentionRelevance(similarities).attribute(inputs(), 1)
    GenericAttentionRelevance(lambda x: similarities(x).diagonal()).attribute(inputs())


def test_contrasts_of_mixed_scores_are_refused():
    model = Model(behind=lambda f: f.roll(1, 0))
    with pytest.raises(MixedSamplesError):
        ConservativeLRP(model).attribute(inputs(), Contrast(1, rather_than=2))


@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_vmap_is_refused():
    model = Model()
    with pytest.raises(UnseenOperationError, match=r"torch\.vmap"):
        ConservativeLRP(torch.vmap(lambda x: model(x[None])[0])).attribute(inputs(), 1)
