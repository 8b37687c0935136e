"""Arguments by name: inputs, further arguments, and calls by Captum's tools."""

from collections import UserDict
from typing import Any

import pytest
import torch
import transformers
from captum.attr import NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor

from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from captum_transformer.errors import InvalidInputError
from tests.attr.subjects import METHODS, assert_close, attributed, subject
from tests.attr.tiny_models import bert, ids, mask


@pytest.mark.parametrize("method", METHODS)
def test_transformers_inputs_by_name(method: str) -> None:
    given = subject("BERT")
    explain = METHODS[method](given.model)
    named, further = {"input_ids": ids()}, {"attention_mask": mask()}
    (expected,) = attributed("BERT", method)

    for inputs in (named, UserDict(named), transformers.BatchEncoding(named)):
        result = explain.attribute(inputs, given.target, additional_forward_kwargs=further)
        assert type(result) is dict
        assert list(result) == ["input_ids"]
        assert torch.equal(result["input_ids"], expected)
    result = explain.attribute(ids(), given.target, additional_forward_kwargs=further)
    assert torch.equal(result, expected)
    tokens = explain.attribute_tokens(named, given.target, additional_forward_kwargs=further)
    assert_close(tokens["input_ids"], expected)
    several = explain.attribute_targets(named, [given.target], additional_forward_kwargs=further)
    assert torch.equal(several[0]["input_ids"], expected)


@pytest.mark.parametrize("method", METHODS)
def test_several_inputs_by_name_in_any_order(method: str) -> None:
    given = subject("pixels and ids")
    pixels, words = given.inputs

    result = METHODS[method](given.model).attribute({"ids": words, "pixels": pixels}, given.target)

    assert list(result) == ["ids", "pixels"]
    expected = attributed("pixels and ids", method)
    assert_close((result["pixels"], result["ids"]), expected)


def test_relevance_maps_and_convergence_delta() -> None:
    given = subject("BERT")
    named, further = {"input_ids": ids()}, {"attention_mask": mask()}

    maps = GenericAttentionRelevance(given.model).relevance_maps(
        named, 1, additional_forward_kwargs=further
    )
    expected = GenericAttentionRelevance(given.model).relevance_maps(ids(), 1, mask())
    assert maps.keys() == expected.keys() == {("input_ids", "input_ids")}
    assert all(torch.equal(maps[key], expected[key]) for key in maps)

    explain = ConservativeLRP(given.model)
    result, delta = explain.attribute(
        named, 1, additional_forward_kwargs=further, return_convergence_delta=True
    )
    _, expected_delta = explain.attribute(ids(), 1, mask(), return_convergence_delta=True)
    assert torch.equal(delta, expected_delta)
    score = given.model(ids(), mask()).logits[:, 1].detach()
    assert torch.equal(explain.compute_convergence_delta(result, score), delta)


def test_maps_are_named_after_the_keys() -> None:
    def wrapped(**arguments: Tensor) -> Any:
        return subject("pixels and ids").model(arguments["image"], arguments["text"])

    pixels, words = subject("pixels and ids").inputs
    inputs = {"image": pixels, "text": words}
    (name,) = GenericAttentionRelevance(wrapped).relevance_maps(inputs, 0)
    assert name == ("image+text", "image+text")


def test_arguments_that_are_no_tensors_or_come_late_in_the_signature() -> None:
    model = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            vocab_size=30,
            n_positions=12,
            n_embd=16,
            n_layer=2,
            n_head=2,
            num_labels=5,
            pad_token_id=0,
        )
    )
    further = {"token_type_ids": torch.ones_like(ids()), "use_cache": False}

    result = GenericAttentionRelevance(model).attribute(
        {"input_ids": ids()}, 1, additional_forward_kwargs=further
    )
    expected = GenericAttentionRelevance(
        lambda ids, kinds: model(ids, token_type_ids=kinds, use_cache=False)
    ).attribute(ids(), 1, further["token_type_ids"])
    assert torch.equal(result["input_ids"], expected)
    without = GenericAttentionRelevance(model).attribute(ids(), 1)
    assert not torch.equal(result["input_ids"], without)


def test_further_arguments_by_position_and_by_name() -> None:
    model = bert()
    kinds = torch.zeros_like(ids())
    result = GenericAttentionRelevance(model).attribute(
        ids(), 1, mask(), additional_forward_kwargs={"token_type_ids": kinds}
    )

    expected = GenericAttentionRelevance(model).attribute(ids(), 1, (mask(), kinds))
    assert torch.equal(result, expected)


def test_inference_tensors_by_name() -> None:
    given = subject("nn.TransformerEncoder")
    with torch.inference_mode():
        inputs = {"embeddings": given.inputs.clone()}
        further = {"padding": given.extra[0].clone(), "nested": {"scale": [torch.tensor(2.0)]}}

        def forward(embeddings: Tensor, padding: Tensor, nested: Any) -> Tensor:
            return given.model(embeddings, padding) * nested["scale"][0]

        result = GenericAttentionRelevance(forward).attribute(
            inputs, given.target, additional_forward_kwargs=further
        )
    assert not result["embeddings"].is_inference()
    assert further["padding"].is_inference()
    expected = GenericAttentionRelevance(lambda x, p: 2 * given.model(x, p)).attribute(
        given.inputs, given.target, given.extra
    )
    assert_close(result["embeddings"], expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"inputs": {"input_ids": ids()}, "additional_forward_kwargs": {"input_ids": ids()}},
            r"\['input_ids'\] are among both `inputs` and `additional_forward_kwargs`",
        ),
        (
            {"inputs": {"input_ids": ids()}, "additional_forward_args": (mask(),)},
            "Pass them by name, as `additional_forward_kwargs`",
        ),
        (
            {"inputs": ids(), "additional_forward_kwargs": [mask()]},
            "must be a mapping of names to arguments, got a list",
        ),
        (
            {"inputs": {"attention_mask": mask() == 1, "input_ids": ids()}},
            "masks as `additional_forward_args` or `additional_forward_kwargs`",
        ),
    ],
    ids=["twice", "by position", "a list", "a mask"],
)
def test_names_that_make_no_sense_are_refused(arguments: Any, said: str) -> None:
    for explain in (GenericAttentionRelevance(bert()), ConservativeLRP(bert())):
        with pytest.raises(InvalidInputError, match=said):
            explain.attribute(target=1, **arguments)
        with pytest.raises(InvalidInputError, match=said):
            explain.attribute_tokens(target=1, **arguments)
        with pytest.raises(InvalidInputError, match=said):
            explain.attribute_targets(targets=[1], **arguments)


def test_names_that_the_model_does_not_have_are_its_own_error() -> None:
    given = subject("timm ViT")
    explain = GenericAttentionRelevance(given.model)

    with pytest.raises(TypeError, match="pixels"):
        explain.attribute({"pixels": given.inputs}, 1)
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        explain.attribute(given.inputs, 1, additional_forward_kwargs={"x": given.inputs})


def smoothed(explain: Any, inputs: Any, **more: Any) -> Any:
    options = {"target": torch.tensor([1, 4, 0][: len(inputs)]), **more}
    return NoiseTunnel(explain).attribute(inputs, nt_samples=2, stdevs=0.0, **options)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_noise_tunnel_did_not_repeat_are_refused(method: str) -> None:
    given = subject("nn.TransformerEncoder")
    explain = METHODS[method](given.model)
    named = {"additional_forward_kwargs": {"padding": given.extra[0]}}

    with pytest.raises(InvalidInputError, match=r"\{'padding': 3\}.*`additional_forward_args`"):
        smoothed(explain, given.inputs, **named)
    with pytest.raises(InvalidInputError, match="6 samples"):
        sensitivity_max(
            explain.attribute, given.inputs, n_perturb_samples=2, target=given.target, **named
        )
    # What the error advises.
    by_position = METHODS[method](lambda x, padding: given.model(x, padding=padding))
    result = smoothed(by_position, given.inputs, additional_forward_args=given.extra)
    assert_close(result, attributed("nn.TransformerEncoder", method))


def test_arguments_may_broadcast_to_repeated_samples() -> None:
    given = subject("nn.TransformerEncoder")
    alone = given.samples([1])
    explain = GenericAttentionRelevance(given.model)
    expected = explain.attribute(alone.inputs, 1, additional_forward_args=alone.extra)

    result = smoothed(
        explain,
        alone.inputs,
        target=1,
        additional_forward_kwargs={"padding": alone.extra[0].expand(2, -1)},
    )
    assert_close(result, expected)

    prototypes = torch.randn(2, 5, dtype=torch.float64)
    similar = GenericAttentionRelevance(lambda x, prototypes: given.model(x) @ prototypes.T)
    named = {"prototypes": prototypes}
    result = smoothed(similar, given.inputs, target=1, additional_forward_kwargs=named)
    expected = similar.attribute(given.inputs, 1, additional_forward_kwargs=named)
    assert_close(result, expected)


def test_noise_tunnel_refuses_inputs_by_name() -> None:
    given = subject("nn.TransformerEncoder")

    with pytest.raises(AssertionError, match=r"must be a torch.Tensor or a tuple.*dict"):
        smoothed(GenericAttentionRelevance(given.model), {"embeddings": given.inputs})


def test_errors_of_the_model_stay_its_own_where_rows_fit() -> None:
    def broken(embeddings: Tensor, padding: Tensor) -> Tensor:
        raise RuntimeError("out of cheese")

    given = subject("nn.TransformerEncoder")
    with pytest.raises(RuntimeError, match=r"^out of cheese$"):
        GenericAttentionRelevance(broken).attribute(
            given.inputs, 1, additional_forward_kwargs={"padding": given.extra[0]}
        )
