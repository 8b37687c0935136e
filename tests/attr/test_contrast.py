"""One output rather than another: what a contrast of targets means for each method."""

from typing import Any

import pytest
import torch
import transformers
from captum.attr import NoiseTunnel
from torch import Tensor

from captum_transformer import (
    AttentionRollout,
    ConservativeLRP,
    Contrast,
    GenericAttentionRelevance,
    TransformerAttribution,
)
from captum_transformer.attr.propagated import propagated_relevance
from captum_transformer.calling import Arguments
from captum_transformer.errors import InvalidTargetError
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.relevance.attention import attention_relevance
from captum_transformer.trace import traced_forward
from tests.attr.subjects import (
    FLOW_METHODS,
    INPUT_METHODS,
    METHODS,
    as_tuple,
    assert_close,
    subject,
)
from tests.attr.tiny_models import bert, ids, mask, with_random_weights

NOT_CLASS_SPECIFIC = ("AttentionRollout", "RawAttention")


@pytest.mark.parametrize("method", INPUT_METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "BERT", "pixels and ids"])
def test_relevance_of_inputs_is_the_difference_of_the_two_relevances(
    name: str, method: str
) -> None:
    given = subject(name)
    explain = METHODS[method](given.model)

    both = explain.attribute_targets(given.inputs, [1, 3], given.extra)
    contrast = as_tuple(explain.attribute(given.inputs, Contrast(1, 3), given.extra))
    for one, other, result in zip(*map(as_tuple, both), contrast, strict=True):
        assert result.abs().max() > 1e-4
        assert_close(result, one - other)


def rows_of_rollout(maps: list[Tensor]) -> Tensor:
    """The row of the first token in ``(I + A_L) ... (I + A_1) - I``."""
    first = torch.eye(maps[0].shape[-1], dtype=torch.float64)[:1]
    row = first.expand(len(maps[0]), 1, -1)
    for layer in reversed(maps):
        row = row + row @ layer
    return row[:, 0] - first


def test_generic_relevance_weights_attention_by_the_gradient_of_the_difference() -> None:
    model = bert("eager")
    output = model(ids(), mask(), output_attentions=True)
    difference = (output.logits[:, 1] - output.logits[:, 3]).sum()
    gradients = torch.autograd.grad(difference, output.attentions)
    maps = [
        (attention * gradient).relu().mean(1).detach()
        for attention, gradient in zip(output.attentions, gradients, strict=True)
    ]

    explain, extra = GenericAttentionRelevance(model), (mask(),)
    assert_close(explain.attribute(ids(), Contrast(1, 3), extra), rows_of_rollout(maps))
    (full,) = explain.relevance_maps(ids(), Contrast(1, 3), extra).values()
    assert_close(full[:, 0], rows_of_rollout(maps))


def test_transformer_attribution_takes_gradient_and_relevance_of_the_difference() -> None:
    model, maps = bert("eager"), []
    keep = flow.KEEP | relevance.TABLE.keep
    with traced_forward(model, Arguments(ids(), (mask(),)), keep=keep) as forward:
        selected = [forward.select(target) for target in (1, 3)]
        outputs = [call.output for call in forward.calls]
        reached = [propagated_relevance(forward, *side, outputs) for side in selected]
        edges = [call.edge for call in forward.calls]
        gradients = forward.gradients(selected[0][0] - selected[1][0], edges)
        for call, gradient in zip(forward.calls, gradients, strict=True):
            slope = gradient @ call.values().mT
            parts = [attention_relevance(call, r[call.output], slice(None)) for r in reached]
            maps.append((slope * (parts[0] - parts[1])).relu().mean(1).detach())

    result = TransformerAttribution(model).attribute(ids(), Contrast(1, 3), (mask(),))
    assert_close(result, rows_of_rollout(maps))


@pytest.mark.parametrize("method", METHODS)
def test_forms_of_both_sides(method: str) -> None:
    given = subject("timm ViT")
    explain = METHODS[method](given.model)
    one, other = [1, 4, 0], [2, 2, 2]
    expected = explain.attribute(given.inputs, Contrast(one, rather_than=other))

    forms: list[Any] = [
        Contrast(torch.tensor(one), rather_than=2),
        Contrast([(1,), (4,), (0,)], rather_than=(2,)),
        Contrast(one, rather_than=torch.tensor(2)),
        [Contrast(1, 2), Contrast(4, 2), Contrast(0, 2)],
    ]
    for form in forms:  # one class for all is taken by itself, so that rounding differs
        assert_close(explain.attribute(given.inputs, form), expected, relative=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_samples(method: str) -> None:
    given = subject("BERT")
    one, other = [1, 4, 0], [3, 0, 2]
    whole = METHODS[method](given.model).attribute(given.inputs, Contrast(one, other), given.extra)

    for i in range(3):
        part = given.samples([i])
        alone = METHODS[method](part.model).attribute(
            part.inputs, Contrast(one[i], other[i]), part.extra
        )
        assert_close(whole[i : i + 1], alone, relative=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_among_several_targets_and_for_tokens(method: str) -> None:
    given = subject("timm ViT")
    explain = METHODS[method](given.model)

    plain, contrast = explain.attribute_targets(given.inputs, [1, Contrast(1, 3)])
    assert torch.equal(plain, explain.attribute(given.inputs, 1))
    assert torch.equal(contrast, explain.attribute(given.inputs, Contrast(1, 3)))
    assert torch.equal(plain, contrast) == (method in NOT_CLASS_SPECIFIC)
    tokens = explain.attribute_tokens(given.inputs, Contrast(1, 3))
    if method != "full LRP":
        assert_close(tokens.sum(1), contrast.sum((1, 2, 3)))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in NOT_CLASS_SPECIFIC])
def test_nothing_speaks_for_a_class_rather_than_itself(method: str) -> None:
    given = subject("timm ViT")
    explain = METHODS[method](given.model)

    result = explain.attribute_tokens(given.inputs, Contrast(1, 1))
    if method in FLOW_METHODS:
        # Without any attention the skips lead to the class token, which is learned.
        assert result.abs().max() < 1e-12
    else:
        assert_close(result + 1, torch.ones_like(result), relative=1e-12)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=12, n_embd=16, n_layer=2, n_head=2, pad_token_id=0
    )
    return with_random_weights(transformers.GPT2LMHeadModel(config))


def test_scores_of_different_tokens_share_the_flow() -> None:
    explain = AttentionRollout(gpt2())
    targets = [(2, 5), (6, 7), Contrast((2, 5), (6, 7))]

    early, late, contrast = explain.attribute_targets(ids(), targets)
    assert early[:, 3:].abs().max() == 0
    assert late[:, 3:].abs().max() > 0
    assert_close(contrast, (early + late) / 2)


def test_two_tokens_at_one_position() -> None:
    model = gpt2()
    explain = ConservativeLRP(model)

    one, other = explain.attribute_targets(ids(), [(6, 5), (6, 7)])
    contrasts = [Contrast((6, 5), (6, 7))] * 3
    result, delta = explain.attribute(ids(), contrasts, return_convergence_delta=True)
    assert_close(result, one - other)
    logits = model(ids()).logits[:, 6].detach()
    assert_close(delta, result.sum(1) - (logits[:, 5] - logits[:, 7]))


@pytest.mark.parametrize(
    ("contrast", "said"),
    [
        (Contrast(1, 5), r"target 5 does not fit the model's output of shape \(3, 5\)"),
        (Contrast("cat", 1), "target 'cat' does not fit"),  # type: ignore[arg-type]
        (Contrast([1, 2], 1), r"target \[1, 2\] does not fit"),
        (Contrast(1, None), "Give a target"),
        ([Contrast(1, 2)] * 2, r"target \[1, 1\] does not fit"),
        ([Contrast(1, 2), 3, 3], "does not fit"),
    ],
    ids=str,
)
def test_a_side_that_does_not_fit_is_named(contrast: Any, said: str) -> None:
    given = subject("timm ViT")

    with pytest.raises(InvalidTargetError, match=said):
        GenericAttentionRelevance(given.model).attribute(given.inputs, contrast)


@pytest.mark.parametrize("method", METHODS)
def test_noise_tunnel_repeats_contrasts(method: str) -> None:
    given = subject("timm ViT")
    explain = METHODS[method](given.model)
    expected = explain.attribute(given.inputs, Contrast(given.target, rather_than=2))

    contrasts = [Contrast(i, 2) for i in given.target]
    result = NoiseTunnel(explain).attribute(
        given.inputs, nt_samples=2, stdevs=0.0, target=contrasts
    )
    assert_close(result, expected)
    with pytest.raises(InvalidTargetError, match=r"\[1, 4, 0\] does not fit .* shape \(6, 5\)"):
        NoiseTunnel(explain).attribute(
            given.inputs, nt_samples=2, stdevs=0.0, target=Contrast(given.target, 2)
        )
    assert_close(
        NoiseTunnel(explain).attribute(
            given.inputs, nt_samples=2, stdevs=0.0, target=Contrast(1, 2)
        ),
        explain.attribute(given.inputs, Contrast(1, 2)),
    )
