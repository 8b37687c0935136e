"""Models that can't be traced are refused by name, with advice that is true; others are not."""

import copy
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from captum_transformer import AttentionRollout, GenericAttentionRelevance, RawAttention
from captum_transformer.errors import (
    ExplanationError,
    InvalidInputError,
    InvalidTargetError,
    UnseenOperationError,
    UnsupportedOperationError,
)
from tests.attr.subjects import EACH_WAY, METHODS, assert_close
from tests.attr.tiny_models import bert, embeddings, encoder, images, timm_vit


class Words(nn.Module):
    """Attention over words in a few lines."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(50, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.out((torch.softmax(x @ x.transpose(1, 2), -1) @ x).mean(1))


IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


def scripted(how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "trace":
            return torch.jit.trace(Words().eval(), IDS)
        module = torch.jit.script(Words().eval())
        return torch.jit.freeze(module) if how == "freeze" else module


@pytest.mark.parametrize(
    ("function", "said"), [(Words, "is the class Words; it must be a model"), (None, "is None")]
)
def test_functions_without_a_model_are_refused(function: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        GenericAttentionRelevance(function).attribute(IDS, 1)


def test_jagged_tensors() -> None:
    words = Words()

    def model(ids: Tensor) -> Tensor:
        x = torch.nested.as_nested_tensor(list(words.words(ids)), layout=torch.jagged)
        return words.out(torch.nested.to_padded_tensor(x * 2, 0.0).mean(1))

    for method in METHODS.values():
        with pytest.raises(UnsupportedOperationError, match=r"nested or sparse tensor.*padded"):
            method(model).attribute(IDS, 1)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_that_no_input_reaches_are_constants(layout: torch.layout) -> None:
    words, parts = Words(), [torch.ones(3, 16), torch.ones(2, 16)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    padded = torch.nested.to_padded_tensor(nested * 2, 0.0)

    def model(ids: Tensor, added: Tensor) -> Tensor:
        added = torch.nested.to_padded_tensor(added * 2, 0.0) if added.is_nested else added
        x = words.words(ids) + added
        return words.out((torch.softmax(x @ x.mT, -1) @ x).mean(1))

    for method in (METHODS[name] for name in EACH_WAY):
        expected = method(model).attribute(IDS, 1, padded)
        assert_close(method(model).attribute(IDS, 1, nested), expected)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_inputs(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(3, 16), torch.ones(2, 16)], layout=layout)
    with pytest.raises(InvalidInputError, match=r"nested or sparse input.*padded, dense one"):
        GenericAttentionRelevance(Words()).attribute(nested, 1)


def test_ensembles_by_vmap() -> None:
    models = [Words(), Words()]
    parameters, buffers = torch.func.stack_module_state(models)

    def model(x: Tensor) -> Tensor:
        run = lambda p, b: torch.func.functional_call(models[0].out, (p, b), (x,))  # noqa: E731
        own = {k.removeprefix("out."): p for k, p in parameters.items() if k.startswith("out.")}
        return torch.vmap(run)(own, buffers).mean(0).mean(1)

    with pytest.raises(UnsupportedOperationError, match=r"inside `torch.vmap`.*in a loop"):
        GenericAttentionRelevance(model).attribute(torch.rand(2, 3, 16), 1)


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
def test_scripted_models(how: str) -> None:
    model = scripted(how)
    for method in METHODS.values():
        with pytest.raises(UnseenOperationError, match="The model is scripted or traced code"):
            method(model).attribute(IDS, 1)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_scripted_part_is_named(how: str) -> None:
    model = nn.Sequential(scripted(how), nn.Linear(3, 2))

    with pytest.raises(UnseenOperationError, match="Module '0' is scripted"):
        GenericAttentionRelevance(model).attribute(IDS, 1)
    model.unused, model[0] = model[0], Words()
    assert GenericAttentionRelevance(lambda ids: model[1](model[0](ids))).attribute(IDS, 1).any()


@pytest.fixture
def one_process() -> Iterator[None]:
    with tempfile.NamedTemporaryFile() as file:
        distributed.init_process_group(
            "gloo", init_method=f"file://{file.name}", rank=0, world_size=1
        )
        yield
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*find_unused_parameters")
@pytest.mark.parametrize("options", [{"find_unused_parameters": True}, {"static_graph": True}])
def test_an_unseen_operation_at_the_output_is_not_blamed_on_the_target(
    one_process: None, options: dict[str, Any]
) -> None:
    model = bert()
    wrapped = DistributedDataParallel(model, **options)

    with pytest.raises(UnseenOperationError, match="explain the `module`") as caught:
        GenericAttentionRelevance(wrapped).attribute(IDS, 1)
    assert not isinstance(caught.value, InvalidTargetError)
    assert_close(
        GenericAttentionRelevance(wrapped.module).attribute(IDS, 1),
        GenericAttentionRelevance(model).attribute(IDS, 1),
    )


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


@pytest.mark.parametrize("output", [lambda x: x, lambda x: {"logits": x}, lambda x: (x, IDS)])
@pytest.mark.parametrize("method", METHODS)
def test_an_unseen_function_at_the_output(method: str, output: Any) -> None:
    model = encoder()

    with pytest.raises(UnseenOperationError, match="CubeBackward"):
        METHODS[method](lambda x: output(Cube.apply(model(x)))).attribute(embeddings(), 1)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = bert()
        explain = GenericAttentionRelevance(model)
        with pytest.raises(ExplanationError, match=r"copy.deepcopy\(model\)"):
            explain.attribute(IDS, 1)
    with pytest.raises(ExplanationError, match=r"made under `torch.inference_mode\(\)`"):
        explain.attribute(IDS, 1)

    advised = GenericAttentionRelevance(copy.deepcopy(model)).attribute(IDS, 1)
    assert_close(advised, GenericAttentionRelevance(bert()).attribute(IDS, 1))


def test_weights_made_without_gradients() -> None:
    with torch.no_grad():
        model = bert()
    found = GenericAttentionRelevance(model).attribute(IDS, 1)
    assert_close(found, GenericAttentionRelevance(bert()).attribute(IDS, 1))


@pytest.mark.parametrize("method", METHODS)
def test_a_score_without_any_axis(method: str) -> None:
    model, image = timm_vit(num_classes=1), images()[:1]
    explain = METHODS[method]

    found = explain(lambda x: model(x).squeeze()).attribute(image)

    assert_close(found, explain(model).attribute(image, 0))


@pytest.mark.parametrize("method", [RawAttention, AttentionRollout])
def test_without_a_target_all_outputs_count(method: Any) -> None:
    model = timm_vit()
    scores = [
        method(model).attribute(images()),
        method(lambda x: model(x).sum(1)).attribute(images()),
    ]
    assert_close(*scores)
