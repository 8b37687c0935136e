"""Tiny models of Transformers that look at an image and a text, each with one call of it."""

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.attr.subjects import (
    CLASSES,
    IMAGE,
    LENGTHS,
    Subject,
    drawn,
    ids,
    images,
    mask,
    with_random_weights,
)

TEXT = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"image_size": 8, "patch_size": 4}


def pixels() -> Tensor:
    return drawn(3, 3, 8, 8, seed=1)


def objects() -> Tensor:
    """Features of an image's regions, as a detector gives them."""
    return drawn(3, 4, 10, seed=4)


def object_mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])


def lxmert(attention: str) -> Subject:
    config = transformers.LxmertConfig(
        **TEXT,
        num_qa_labels=CLASSES,
        visual_feat_dim=10,
        max_position_embeddings=12,
        l_layers=2,
        r_layers=2,
        x_layers=2,
        attn_implementation=attention,
    )
    model = with_random_weights(transformers.LxmertForQuestionAnswering(config))

    def answer(
        input_ids: Tensor, visual_feats: Tensor, visual_pos: Tensor, *masks: Tensor
    ) -> Tensor:
        attention_mask, visual_attention_mask = masks
        return model(
            input_ids=input_ids,
            visual_feats=visual_feats,
            visual_pos=visual_pos,
            attention_mask=attention_mask,
            visual_attention_mask=visual_attention_mask,
        ).question_answering_score

    boxes = drawn(3, 4, 4, seed=5).sigmoid()
    inputs = (ids(), objects(), boxes)
    return Subject(answer, inputs, [1, 4, 3], (mask(), object_mask()), tokens=(7, 4, 4))


def vilt(attention: str) -> Subject:
    config = transformers.ViltConfig(
        **TEXT,
        image_size=12,
        patch_size=4,
        num_hidden_layers=2,
        max_position_embeddings=12,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    model = with_random_weights(transformers.ViltForQuestionAnswering(config))

    def answer(
        input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor, pixel_mask: Tensor
    ) -> Tensor:
        return model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            pixel_mask=pixel_mask,
        ).logits

    return Subject(answer, (ids(), images()), [1, 4, 0], (mask(), pixel_mask()), tokens=(7, 6))


def pixel_mask() -> Tensor:
    """One for the pixels of each image; the others make the batch rectangular."""
    height, width = IMAGE
    sizes = torch.tensor([[height, width], [height, width - 4], [height - 4, width]])
    rows = torch.arange(height) < sizes[:, :1]
    columns = torch.arange(width) < sizes[:, 1:]
    return (rows[:, :, None] & columns[:, None, :]).long()


def visual_bert(attention: str) -> Subject:
    config = transformers.VisualBertConfig(
        **TEXT,
        visual_embedding_dim=10,
        num_hidden_layers=2,
        max_position_embeddings=12,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    model = with_random_weights(transformers.VisualBertForQuestionAnswering(config))

    def answer(
        input_ids: Tensor,
        visual_embeds: Tensor,
        attention_mask: Tensor,
        visual_attention_mask: Tensor,
    ) -> Tensor:
        return model(
            input_ids=input_ids,
            visual_embeds=visual_embeds,
            attention_mask=attention_mask,
            visual_attention_mask=visual_attention_mask,
        ).logits

    inputs = (ids(), objects())
    return Subject(answer, inputs, [1, 4, 0], (mask(), object_mask()), tokens=(7, 4))


def _blip_config(attention: str) -> Any:
    text = {
        **TEXT,
        "num_hidden_layers": 2,
        "max_position_embeddings": 12,
        "encoder_hidden_size": 16,
        "is_decoder": True,
    }
    vision = {**VISION, **PATCHES, "num_hidden_layers": 2}
    return transformers.BlipConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=8,
        image_text_hidden_size=8,
        attn_implementation=attention,
    )


def blip_matching(attention: str) -> Subject:
    """Whether the text describes the image: the head on text that attends to the image."""
    model = with_random_weights(transformers.BlipForImageTextRetrieval(_blip_config(attention)))

    def match(input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor) -> Tensor:
        return model(input_ids, pixel_values, attention_mask=attention_mask).itm_score

    return Subject(match, (ids(), pixels()), [1, 0, 1], (mask(),), tokens=(7, 4))


def blip_contrast(attention: str) -> Subject:
    """How similar text and image are, each embedded by itself."""
    model = with_random_weights(transformers.BlipForImageTextRetrieval(_blip_config(attention)))

    def similarity(input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor) -> Tensor:
        output = model(input_ids, pixel_values, attention_mask=attention_mask, use_itm_head=False)
        return output.itm_score.diagonal()

    return Subject(similarity, (ids(), pixels()), None, (mask(),), tokens=(7, 4))


def blip_answering(attention: str) -> Subject:
    """The next token of an answer; the model's own forward gives no logits but a loss."""
    model = with_random_weights(transformers.BlipForQuestionAnswering(_blip_config(attention)))

    def answer(
        input_ids: Tensor, pixel_values: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        image = model.vision_model(pixel_values).last_hidden_state
        question = model.text_encoder(
            input_ids, attention_mask=attention_mask, encoder_hidden_states=image
        ).last_hidden_state
        return model.text_decoder(
            decoder_input_ids,
            encoder_hidden_states=question,
            encoder_attention_mask=attention_mask,
        ).logits

    inputs = (ids(), pixels(), ids()[:, :4].flip(0))
    target = [(3, 7), (1, 12), (2, 0)]
    return Subject(answer, inputs, target, (mask(),), tokens=(7, 4, 4))


def clip(attention: str) -> Subject:
    config = transformers.CLIPConfig(
        text_config={
            **TEXT,
            "num_hidden_layers": 2,
            "max_position_embeddings": 7,
            "eos_token_id": 29,
        },
        vision_config={**VISION, **PATCHES, "num_hidden_layers": 2},
        projection_dim=8,
        attn_implementation=attention,
    )
    model = with_random_weights(transformers.CLIPModel(config))

    def similarity(input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor) -> Tensor:
        output = model(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask
        )
        return output.logits_per_image.diagonal()

    # A text is read where it ends.
    ends = torch.arange(7) == torch.tensor(LENGTHS)[:, None] - 1
    text = (ids() % 28 + 1).masked_fill(ends, 29)
    return Subject(similarity, (text, pixels()), None, (mask(),), tokens=(7, 4))


def siglip(attention: str) -> Subject:
    """A text is read at its last token: all are padded to one length, and nothing is masked."""
    config = transformers.SiglipConfig(
        text_config={**TEXT, "num_hidden_layers": 2, "max_position_embeddings": 7},
        vision_config={**VISION, **PATCHES, "num_hidden_layers": 2},
        attn_implementation=attention,
    )
    model = with_random_weights(transformers.SiglipModel(config))

    def similarity(input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        output = model(input_ids=input_ids, pixel_values=pixel_values)
        return output.logits_per_image.diagonal()

    return Subject(similarity, (ids(), pixels()), None, tokens=(7, 4))
