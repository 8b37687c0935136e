"""Generated tokens are explained by earlier tokens; models that look ahead are refused."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer.errors import InvalidInputError, UnsupportedOperationError
from tests.attr.subjects import METHODS
from tests.attr.tiny_models import with_random_weights

PROMPT = torch.tensor([[5, 6, 7, 9], [8, 4, 3, 2]])
GENERATED = torch.cat([PROMPT, torch.tensor([[8, 9, 3, 4], [5, 7, 2, 6]])], 1)
LENGTH = GENERATED.shape[1]


class Writer(nn.Module):
    """One layer of attention, where each token sees those that a map of ones and zeros says."""

    def __init__(self, seen: Tensor) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 16), nn.Embedding(LENGTH, 16)
        self.qkv, self.head, self.seen = nn.Linear(16, 48), nn.Linear(16, 10), seen.bool()

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.words(ids) + self.places.weight[: ids.shape[1]]
        for _ in range(2):
            q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen)
            tokens = tokens + attended.transpose(1, 2).flatten(2)
        return self.head(tokens)


CAUSAL = torch.ones(LENGTH, LENGTH).tril()


def seeing(*pairs: tuple[int, int]) -> Tensor:
    seen = CAUSAL.clone()
    for query, key in pairs:
        seen[query, key] = 1
    return seen


AHEAD = {
    "everything": torch.ones(LENGTH, LENGTH),
    "the last token": seeing((4, 7)),
    "the next token": seeing((4, 5)),
    "the prompt sees what was generated": seeing((2, 6)),
    "the prompt sees the first token": seeing((3, 4)),
}
# Some refuse to explain token by token at all, and say so.
EXPLAINING = [name for name in METHODS if name != "AttentionGradCam, map"]


@pytest.mark.parametrize("seen", AHEAD.values(), ids=AHEAD)
@pytest.mark.parametrize("method", EXPLAINING)
def test_a_score_that_depends_on_a_later_token(method: str, seen: Tensor) -> None:
    model = with_random_weights(Writer(seen))

    with pytest.raises(InvalidInputError, match="depend on later tokens"):
        METHODS[method](model).attribute_generated(PROMPT, GENERATED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", EXPLAINING)
def test_a_prompt_that_is_read_both_ways(method: str, dtype: torch.dtype) -> None:
    prefix = seeing(*((query, key) for query in range(4) for key in range(4)))
    model = with_random_weights(Writer(prefix)).to(dtype)

    found = METHODS[method](model).attribute_generated(PROMPT, GENERATED)

    assert found.shape == (2, 4, 4)
    assert found.abs().sum() > 0


@pytest.mark.parametrize("method", ["AttentionRollout", "GenericAttentionRelevance", "AttnLRP"])
def test_a_model_that_reads_in_both_directions(method: str) -> None:
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
    )
    model = with_random_weights(transformers.BertForMaskedLM(config))

    with pytest.raises(InvalidInputError, match="BERT"):
        METHODS[method](model).attribute_generated(PROMPT, GENERATED)


@pytest.mark.parametrize("method", ["RawAttention", "GenericAttentionRelevance", "ConservativeLRP"])
def test_a_prefix_that_is_marked_too_far(method: str) -> None:
    config = transformers.PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        text_config={
            "model_type": "gemma",
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "max_position_embeddings": 64,
        },
        image_token_index=31,
        projection_dim=16,
    )
    model = with_random_weights(transformers.PaliGemmaForConditionalGeneration(config))
    prompt = torch.cat([torch.full((2, 4), 31), PROMPT], 1)
    sequence = torch.cat([prompt, GENERATED[:, 4:]], 1)
    pixels = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    inputs = {"input_ids": prompt, "pixel_values": pixels}
    explain = METHODS[method](model)

    def explained(*marks: int) -> dict[str, Tensor]:
        types = torch.tensor([0] * prompt.shape[1] + list(marks)).expand(2, -1)
        named = {"attention_mask": torch.ones_like(sequence), "token_type_ids": types}
        return explain.attribute_generated(
            inputs, sequence, generated_as="input_ids", additional_forward_kwargs=named
        )

    assert explained(1, 1, 1, 1)["input_ids"].shape == (2, 4, 8)
    for marks in ((0, 0, 0, 0), (0, 0, 1, 1)):
        with pytest.raises(InvalidInputError, match="mark some of the tokens as a prefix"):
            explained(*marks)


def test_methods_that_look_ahead_are_refused() -> None:
    model = with_random_weights(Writer(CAUSAL))
    with pytest.raises(UnsupportedOperationError, match="pooling='row'"):
        METHODS["AttentionGradCam, map"](model).attribute_generated(PROMPT, GENERATED)
