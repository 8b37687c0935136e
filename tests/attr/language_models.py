"""Tiny language models with random weights, and the text that they generate."""

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.attr.subjects import METHODS
from tests.attr.tiny_models import BART, T5, with_random_weights

CAUSAL = [method for method in METHODS if method != "AttentionGradCam, map"]
VOCABULARY, NEW = 30, 3
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        attn_implementation="eager",  # older ones can't make a mask in float64 for the others
        **SPECIAL,
    )
    return with_random_weights(transformers.GPT2LMHeadModel(config))


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=12,
        **SPECIAL,
    )
    return with_random_weights(transformers.LlamaForCausalLM(config))


def bart() -> Any:
    config = transformers.BartConfig(
        **BART,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **SPECIAL,
    )
    return with_random_weights(transformers.BartForConditionalGeneration(config))


def t5() -> Any:
    config = transformers.T5Config(**T5, pad_token_id=0, eos_token_id=2)
    return with_random_weights(transformers.T5ForConditionalGeneration(config))


DECODERS = {"GPT-2": gpt2, "Llama": llama}
ENCODER_DECODERS = {"BART": bart, "T5": t5}


def prompt() -> tuple[Tensor, Tensor]:
    """Ids of two texts of different lengths, padded on the left, and their mask."""
    ids = torch.tensor([[5, 9, 14, 7], [0, 0, 21, 8]])
    return ids, (ids != 0).long()


def generated_by(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.generate(
        ids, attention_mask=mask, min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False
    )


def further(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """The arguments that ``generate`` passes beside the ids of a padded batch."""
    named = {"attention_mask": mask}
    if isinstance(model, transformers.GPT2LMHeadModel):
        named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return named


class Captioner(nn.Module):
    """Patches and words; each word sees all patches and the words before it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.words = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 24) for _ in range(2))
        for layer in self.layers:
            layer.self_attn.batch_first = True
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        patches = self.patches(pixel_values).flatten(2).mT
        tokens = torch.cat([patches, self.words(input_ids)], 1)
        mask = torch.ones(tokens.shape[1], tokens.shape[1]).tril().log().double()
        for layer in self.layers:
            tokens = layer(tokens, src_mask=mask)
        return self.head(tokens)


IDS = torch.tensor([[5, 9, 14], [6, 7, 8]])
SEQUENCES = F.pad(IDS, (0, 2), value=11)


def of_decoder(name: str) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
    """A decoder with prompts, the sequences that it generated, and its other arguments."""
    model = DECODERS[name]()
    ids, mask = prompt()
    sequences = generated_by(model, ids, mask)
    return model, ids, sequences, further(model, F.pad(mask, (0, NEW), value=1))


def sum_of(maps: Any) -> Tensor:
    """The relevance of each generated token or span, summed over the inputs."""
    tensors = maps.values() if isinstance(maps, dict) else [maps]
    total: Tensor = sum(tensor.flatten(2).sum(2) for tensor in tensors)
    return total
