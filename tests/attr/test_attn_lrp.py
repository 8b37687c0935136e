"""AttnLRP and GIM change gradients and nothing else, also where there are gates and soft caps."""

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from captum_transformer import GIM, AttnLRP
from captum_transformer.trace import numeric
from tests.attr.subjects import SUBJECTS, as_tuple, assert_close, subject
from tests.attr.tiny_models import ids, with_random_weights

FAVOURED = partial(AttnLRP, gamma=0.25, conv_gamma=1.0)


def scores(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("method", [AttnLRP, FAVOURED, GIM], ids=["AttnLRP", "gamma", "GIM"])
def test_every_bit_of_the_output_stays(method: Any, name: str, dtype: torch.dtype) -> None:
    given = subject(name).to(dtype)
    seen: list[Tensor] = []

    def watched(*arguments: Any) -> Tensor:
        seen.append(scores(given.model(*arguments)))
        return seen[0]

    method(watched).attribute(given.inputs, given.target, given.extra)

    leaves = [t.clone() for t in as_tuple(given.inputs)]
    for leaf in leaves:
        leaf.requires_grad_(leaf.is_floating_point())
    assert torch.equal(seen[0], scores(given.model(*leaves, *(given.extra or ()))))


@pytest.mark.parametrize("name", SUBJECTS)
def test_slopes_made_in_parts_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = subject(name).to(torch.bfloat16)
    whole = as_tuple(given.attribute(AttnLRP))
    monkeypatch.setattr(numeric, "AT_ONCE", 16)
    for found, expected in zip(as_tuple(given.attribute(AttnLRP)), whole, strict=True):
        assert torch.equal(found, expected)


def gemma3(attention: str) -> Any:
    config = transformers.Gemma3TextConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=32,
        max_position_embeddings=16,
        sliding_window=4,
        final_logit_softcapping=3.0,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.Gemma3ForCausalLM(config))


@pytest.mark.parametrize("method", [AttnLRP, GIM])
def test_sdpa_equals_eager_on_gemma(method: Any) -> None:
    target = [(6, word) for word in (1, 4, 0)]
    sdpa, eager = (method(gemma3(a)).attribute(ids(), target) for a in ("sdpa", "eager"))

    assert (sdpa != 0).all()
    assert_close(sdpa, eager, 1e-5)  # probabilities and norms in float32 in either case


def test_ids_equal_embeddings_on_gemma() -> None:
    model, target = gemma3("sdpa"), [(6, word) for word in (1, 4, 0)]
    vectors = model.get_input_embeddings()(ids()).detach()
    by_id = AttnLRP(model).attribute(ids(), target)

    method = AttnLRP(lambda vectors: model(inputs_embeds=vectors).logits)
    assert_close(method.attribute(vectors, target).sum(-1), by_id)
    assert_close(method.attribute_tokens(vectors, target), by_id)
