"""Queries that are pooled, so that attention itself makes fewer tokens of many."""

import itertools

import pytest
import torch
from timm.models.hiera import Hiera
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from torch import nn

from benchmarks.model_matrix.family import CLASSES, drawn, with_random_weights
from captum_transformer import AttentionRollout
from tests.oracles.grids import maxima, receptive_fields, scattered, windows
from tests.oracles.rows import EXACT, Layer, Oracle, Softmaxes, mean_over, written_out

IMAGE = (32, 48)
GRID = (8, 12)


def captured(model, images, modules, *, inputs=False):
    """What some modules get or give in a forward pass."""
    values = []
    hooks = [
        module.register_forward_hook(lambda _, got, gave: values.append(got[0] if inputs else gave))
        for module in modules
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return values


@pytest.mark.parametrize("options", [{}, {"expand_attn": False, "use_cls_token": True}])
def test_mvit_v2(options):
    sizes = {"depths": (2, 2, 1), "embed_dim": 8, "num_heads": 1}
    strides = {"stride_q": ((1, 1), (2, 2), (2, 2)), "stride_kv_adaptive": (4, 4)}
    config = MultiScaleVitCfg(**sizes, **strides, **options)
    model = with_random_weights(MultiScaleVit(config, img_size=48, num_classes=CLASSES))
    learned = int(config.use_cls_token)

    def beside_class_token(matrix):
        return torch.block_diag(torch.eye(learned, dtype=matrix.dtype), matrix)

    def pooled_attention(grid, stride, reduction):
        keys = beside_class_token(receptive_fields(grid, 3, reduction, 1))
        # Queries are pooled by a convolution and added to what they attended to. That passes each
        # token on once: whatever skip the block has beside it adds no more than it spreads.
        pooled = receptive_fields(grid, 3, 2, 1) if stride == 2 else torch.eye(grid[0] * grid[1])
        skip = beside_class_token(pooled.double())
        return Layer(lambda attention: attention @ keys, skip)

    path, grid = [], GRID
    for depth, stride, reduction in ((2, 1, 4), (2, 2, 2), (1, 2, 1)):
        for block in range(depth):
            first = block == 0 and stride == 2
            path.append(pooled_attention(grid, 2 if first else 1, reduction))
            grid = (grid[0] // 2, grid[1] // 2) if first else grid
    read = torch.eye(1 + grid[0] * grid[1]).double()[0] if learned else mean_over(grid)
    stem = receptive_fields(IMAGE, 7, 4, 3)
    images = drawn(2, 3, *IMAGE, seed=1)
    Oracle(model, images, path, read, learned, stem).check()


def unrolled(grid, levels):
    """Hiera's order of tokens: the place within each square of 2 x 2 counts before the square."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    place = torch.zeros_like(rows)
    for _ in range(levels):
        place = 4 * place + 2 * (rows % 2) + columns % 2
        rows, columns = rows // 2, columns // 2
    squares = (grid[0] * grid[1]) >> (2 * levels)
    place = squares * place + (grid[1] >> levels) * rows + columns
    matrix = torch.zeros(grid[0] * grid[1], grid[0] * grid[1], dtype=torch.float64)
    matrix[place.flatten(), torch.arange(len(matrix))] = 1
    return matrix


def of_maxima(values):
    """Which of the four tokens that are pooled each feature is of."""
    places = values.unflatten(1, (4, -1))
    parts = nn.functional.one_hot(places.argmax(1), 4).double().mean(2)
    return torch.cat([torch.diag_embed(part) for part in parts.unbind(-1)], -1)


def of_maxima_and_means(values):
    means = torch.eye(values.shape[1] // 4).double().repeat(1, 4) / 4
    return (of_maxima(values) + means) / 2


# The skips are projected and then pooled, or pooled as they are, once.
@pytest.mark.parametrize(("projected", "stages"), [(True, (1, 2, 2)), (False, (1, 2))])
def test_hiera(projected, stages):
    levels = len(stages) - 1
    model = Hiera(
        img_size=IMAGE,
        embed_dim=8,
        stages=stages,
        q_pool=levels,
        mask_unit_size=(2**levels, 2**levels),
        mask_unit_attn=(*[True] * levels, False),
        use_expand_proj=projected,
        num_classes=CLASSES,
    )
    model = with_random_weights(model)
    images = drawn(2, 3, *IMAGE, seed=1)
    pooling = [block for block in model.blocks if block.do_expand]
    if projected:
        values = captured(model, images, [block.proj for block in pooling])
        skips = [of_maxima(value) for value in values]
    else:
        skips = [of_maxima_and_means(v) for v in captured(model, images, pooling, inputs=True)]

    tokens, units, skips = 96, 96 >> (2 * levels), iter(skips)
    path = [unrolled(GRID, levels)]
    for block in model.blocks:
        pools, within = block.do_expand, block is not model.blocks[-1]
        made, parts = tokens // 4 if pools else tokens, units if within else 1
        queries, keys = (torch.arange(n).view(-1, parts).T for n in (made, tokens))

        def place(attention, queries=queries, keys=keys, sizes=(made, tokens)):
            # Some versions of timm have no axis for a single unit.
            attention = attention if attention.ndim == 4 else attention[:, None]
            return scattered(attention, queries, keys, sizes)

        path.append(Layer(place, next(skips) if pools else torch.eye(tokens).double()))
        tokens = made
    read = mean_over((1, tokens))
    Oracle(model, images, path, read, stem=receptive_fields(IMAGE, 7, 4, 3)).check()


def test_pooled_skips_of_hiera_keep_features_apart():
    """Skips that are pooled as they are, one after another, move a share feature by feature."""
    levels = 2
    options = {"stages": (1, 1, 1), "q_pool": levels, "mask_unit_size": (4, 4)}
    model = Hiera(IMAGE, embed_dim=8, **options, use_expand_proj=False, num_classes=CLASSES)
    model, images = with_random_weights(model), drawn(2, 3, *IMAGE, seed=1)
    with written_out(model), Softmaxes() as softmaxes:
        model(images)
    values = captured(model, images, model.blocks, inputs=True)
    share = torch.full((2, 6, 32), 1 / (6 * 32), dtype=torch.float64)
    for x, attention in zip(reversed(values), reversed(softmaxes.maps), strict=True):
        share = share / 2  # rows are normalised
        units, tokens, width = attention.shape[-3], x.shape[1], x.shape[2]
        of_queries = share.sum(-1).unflatten(1, (-1, units)).mT[..., None, :]
        of_keys = (of_queries @ attention.mean(1)).squeeze(-2).mT.flatten(1)
        if share.shape[1] < tokens:
            maxima, means = share.split(width, -1)
            places = x.unflatten(1, (4, -1)).argmax(1, keepdim=True)
            chosen = torch.zeros(2, 4, *maxima.shape[1:], dtype=x.dtype)
            chosen = chosen.scatter(1, places, maxima[:, None])
            share = (chosen + means[:, None] / 4).flatten(1, 2)
        share = share + of_keys[..., None] / width
    expected = share.sum(-1) @ unrolled(GRID, levels)
    found = AttentionRollout(model, with_identity=True).attribute_tokens(images)
    torch.testing.assert_close(found, expected, **EXACT)


def test_nest():
    sizes = {"embed_dims": (8, 16, 8), "num_heads": (2, 2, 2), "depths": (1, 2, 1)}
    model = Nest(img_size=64, num_levels=3, **sizes, num_classes=CLASSES)
    model = with_random_weights(model)
    images = drawn(2, 3, 64, 64, seed=1)
    aggregated = iter(
        captured(model, images, [level.pool.pool for level in model.levels[1:]], inputs=True)
    )
    path, grid = [], (16, 16)
    for level, depth in enumerate(sizes["depths"]):
        if level:
            path += [receptive_fields(grid, 3, 1, 1), maxima(next(aggregated), 3, 2, 1)]
            grid = (grid[0] // 2, grid[1] // 2)
        blocks, tokens = windows(grid, (4, 4)), grid[0] * grid[1]
        layer = Layer(
            lambda attention, held=blocks, n=tokens: scattered(attention, held, held, (n, n)),
            torch.eye(tokens).double(),
        )
        path += itertools.repeat(layer, depth)
    Oracle(model, images, path, mean_over((4, 4)), stem=receptive_fields((64, 64), 4, 4)).check()
