"""The small models that the study trains itself."""

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.device import best_device

LONGEST = 1024


def normalised(images: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1]."""
    return images * 2 - 1


def picture_vit(classes: int) -> VisionTransformer:
    """For pictures of 64x64: 64 patches."""
    return VisionTransformer(
        img_size=64, patch_size=8, num_classes=classes,
        embed_dim=96, depth=4, num_heads=6, mlp_ratio=4,
    )  # fmt: skip


def mosaic_vit() -> VisionTransformer:
    """For mosaics of 56x56: 64 patches, sixteen to a digit."""
    return VisionTransformer(
        img_size=56, patch_size=7, in_chans=1, num_classes=10,
        embed_dim=64, depth=4, num_heads=4, mlp_ratio=2,
    )  # fmt: skip


def text_encoder(words: int) -> BertForSequenceClassification:
    """A BERT of four layers for two classes."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=words,
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=LONGEST,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.1,
        )
    )


def decoder(words: int, layers: int = 3) -> LlamaForCausalLM:
    """A Llama that continues texts."""
    return LlamaForCausalLM(_llama(words, 64, layers))


def speaker(words: int, length: int, layers: int, ends: int) -> GPT2LMHeadModel:
    """A GPT-2 for sentences of up to ``length`` words; ``ends`` is the word at their end."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=words,
            n_positions=length,
            n_embd=64,
            n_layer=layers,
            n_head=4,
            bos_token_id=ends,
            eos_token_id=ends,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


class LastToken(nn.Module):
    """A Llama for two classes, read from each text's last token, which has seen all others.

    Transformers' own finds that token by its id, so it can't where embeddings are given.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.base_model = LlamaModel(_llama(words, 64, 3))
        self.classifier = nn.Linear(64, 2)

    def get_input_embeddings(self) -> nn.Module:
        """The words' embeddings."""
        found: nn.Module = self.base_model.get_input_embeddings()
        return found

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor,
        inputs_embeds: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Scores as the models of Transformers return them; padding is at the right."""
        states = self.base_model(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds
        ).last_hidden_state
        rows = torch.arange(len(states), device=states.device)
        last = states[rows, attention_mask.sum(1) - 1]
        return SequenceClassifierOutput(logits=self.classifier(last))


class MeanOfTokens(nn.Module):
    """Embeds sentences: the mean over the tokens of a small BERT."""

    WIDTH = 32

    def __init__(self, words: int) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=words,
            hidden_size=self.WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * self.WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def states(self, ids: Tensor) -> Tensor:
        """The last hidden states."""
        found: Tensor = self.bert(ids).last_hidden_state
        return found

    def forward(self, ids: Tensor) -> Tensor:
        """``(B, WIDTH)``."""
        return self.states(ids).mean(1)


def _llama(words: int, width: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=LONGEST,
    )


def parameters(model: nn.Module) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in model.parameters())


def device() -> torch.device:
    """A GPU if there is one."""
    return best_device()
