"""With ``checkpoint=True`` or ``checkpoint=2``, all results are the same to the last bit."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    BiLRP,
    ConservativeLRP,
    FullGradPlus,
    GenericAttentionRelevance,
    LayerRelevance,
    LeGrad,
    LibraGrad,
    RelevancePatching,
    TransformerAttribution,
    extend,
)
from captum_transformer.errors import InvalidInputError
from tests.attr import kinds_of_attention
from tests.attr.subjects import METHODS, SUBJECTS, assert_identical, attributed, subject
from tests.attr.tiny_models import bert, ids, images, timm_vit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_method(name: str, method: str) -> None:
    found = subject(name).attribute(partial(METHODS[method], checkpoint=True))
    assert_identical(found, attributed(name, method))


@pytest.mark.parametrize("method", ["AttnLRP", "GenericAttentionRelevance", "full LRP"])
@pytest.mark.parametrize("name", kinds_of_attention.KINDS)
def test_every_kind_of_attention(name: str, method: str) -> None:
    given, again = kinds_of_attention.subject(name), partial(METHODS[method], checkpoint=True)
    if name == "ViLT":
        maps = []
        for each in (METHODS[method], again):
            torch.manual_seed(0)  # it shuffles its patches
            maps.append(given.attribute(each))
        assert_identical(*maps)
    else:
        assert_identical(given.attribute(again), kinds_of_attention.attributed(name, method))


def test_layers_and_heads() -> None:
    model, x = timm_vit(depth=3), images()
    layers = ["patch_embed", "blocks.1", "blocks.1.mlp.act", ("blocks.2", 0)]
    for make in (AttnLRP, LibraGrad, partial(TransformerAttribution, propagate_to_input=True)):
        plain, again = make(model), make(model, checkpoint=True)
        assert_identical(
            tuple(again.attribute_layers(x, layers, 1)), tuple(plain.attribute_layers(x, layers, 1))
        )
        assert_identical(tuple(again.attribute_heads(x, 1)), tuple(plain.attribute_heads(x, 1)))
    for make in (GenericAttentionRelevance, AttentionRollout):
        plain, again = make(model), make(model, checkpoint=True)
        assert_identical(tuple(again.attribute_heads(x, 1)), tuple(plain.attribute_heads(x, 1)))
        assert_identical(
            LayerRelevance(again, "blocks.0").attribute(x, 1),
            LayerRelevance(plain, "blocks.0").attribute(x, 1),
        )


def test_several_targets_tokens_and_small_batches() -> None:
    model, x = bert(), ids()
    for make in (AttnLRP, GenericAttentionRelevance, TransformerAttribution, GIM):
        plain, again = make(model), make(model, checkpoint=1)
        assert_identical(
            tuple(again.attribute_targets(x, [1, 4])), tuple(plain.attribute_targets(x, [1, 4]))
        )
        assert_identical(again.attribute_tokens(x, 1), plain.attribute_tokens(x, 1))
        assert_identical(
            again.attribute(x, 1, internal_batch_size=2),
            plain.attribute(x, 1, internal_batch_size=2),
        )


def test_accounts_and_positions() -> None:
    model, x = bert(), ids()
    for make in (AttnLRP, ConservativeLRP, GenericAttentionRelevance, TransformerAttribution):
        accounts = [make(model, checkpoint=again).account(x, 1) for again in (False, True)]
        for one, other in zip(*(account.parts for account in accounts), strict=True):
            assert (one.taker, one.source) == (other.taker, other.source)
            assert_identical(one.amount, other.amount)
    maps = [
        AttnLRP(model, positions="separate", checkpoint=again).attribute_positions(x, 1)
        for again in (False, True)
    ]
    assert_identical(*maps)
    maps = [
        AttnLRP(model, positions="add", checkpoint=again).attribute(x, 1) for again in (False, True)
    ]
    assert_identical(*maps)


def test_generated_tokens() -> None:
    given = kinds_of_attention.subject("Llama")
    prompt = given.inputs["input_ids"][:, :4]
    for make in (AttnLRP, GenericAttentionRelevance):
        maps = [
            make(given.model, checkpoint=again).attribute_generated(
                {"input_ids": prompt}, given.inputs["input_ids"]
            )
            for again in (False, True)
        ]
        assert_identical(*maps)


MADE: Mapping[str, Callable[..., Any]] = {
    "FullGradPlus": lambda model, **o: FullGradPlus(model, list(model.blocks), **o),
    "LeGrad": LeGrad,
    "GradientMethod": lambda model, **o: extend.GradientMethod(model, extend.LN, **o),
    "RelevanceMethod": lambda model, **o: extend.RelevanceMethod(
        model, {extend.Kind.PRODUCT: extend.z_rule}, **o
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_methods_with_other_arguments(name: str) -> None:
    model = timm_vit(depth=3)
    maps = [MADE[name](model, checkpoint=again).attribute(images(), 1) for again in (False, True)]
    assert_identical(*maps)


def test_methods_of_two_inputs() -> None:
    model, x = timm_vit(depth=3), images()
    for call in ("attribute", "attribute_heads"):
        layers = (["blocks.0", "blocks.1.attn"],) if call == "attribute" else ()
        found = [
            getattr(RelevancePatching(model, checkpoint=again), call)(x, x.flip(0), *layers, 1)
            for again in (False, True)
        ]
        assert_identical(*map(tuple, found))
    pairs = [
        BiLRP(
            lambda x: model.forward_features(x).mean(1),
            method=partial(ConservativeLRP, checkpoint=again),
        ).attribute(x[:1], x[1:2])
        for again in (False, True)
    ]
    assert_identical(*pairs)


@pytest.mark.parametrize("checkpoint", [-1, 0.5, "yes", None])
def test_bad_numbers_of_layers_are_refused(checkpoint: Any) -> None:
    for make in (AttnLRP, RelevancePatching):
        with pytest.raises(
            InvalidInputError, match=r"True, False, or how many .*got " + repr(checkpoint)
        ):
            make(timm_vit(), checkpoint=checkpoint)
