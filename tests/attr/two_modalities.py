"""Tiny models of Transformers that look at an image and a text, each with one call of it."""

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.attr.subjects import Subject
from tests.attr.tiny_models import (
    CLASSES,
    IMAGE,
    LENGTHS,
    drawn,
    ids,
    images,
    mask,
    with_random_weights,
)

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SIZES, "vocab_size": 30}
JOINT = {**TEXT, "num_hidden_layers": 2, "max_position_embeddings": 12, "num_labels": CLASSES}
VISION = {**SIZES, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}


def pixels() -> Tensor:
    return drawn(3, 3, 8, 8, seed=1)


def objects() -> Tensor:
    """Features of an image's regions, as a detector gives them."""
    return drawn(3, 4, 10, seed=4)


def object_mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])


def pixel_mask() -> Tensor:
    """One for the pixels of each image; the others make the batch rectangular."""
    height, width = IMAGE
    sizes = torch.tensor([[height, width], [height, width - 4], [height - 4, width]])
    rows = torch.arange(height) < sizes[:, :1]
    columns = torch.arange(width) < sizes[:, 1:]
    return (rows[:, :, None] & columns[:, None, :]).long()


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
    boxes = drawn(3, 4, 4, seed=5).sigmoid()
    return Subject(
        with_random_weights(transformers.LxmertForQuestionAnswering(config)),
        {"input_ids": ids(), "visual_feats": objects(), "visual_pos": boxes},
        target=[1, 4, 3],
        named={"attention_mask": mask(), "visual_attention_mask": object_mask()},
        tokens=(7, 4, 4),
    )


def vilt(attention: str) -> Subject:
    config = transformers.ViltConfig(
        **JOINT, image_size=12, patch_size=4, attn_implementation=attention
    )
    return Subject(
        with_random_weights(transformers.ViltForQuestionAnswering(config)),
        {"input_ids": ids(), "pixel_values": images()},
        target=[1, 4, 0],
        named={"attention_mask": mask(), "pixel_mask": pixel_mask()},
        tokens=(7, 6),
    )


def visual_bert(attention: str) -> Subject:
    config = transformers.VisualBertConfig(
        **JOINT, visual_embedding_dim=10, attn_implementation=attention
    )
    return Subject(
        with_random_weights(transformers.VisualBertForQuestionAnswering(config)),
        {"input_ids": ids(), "visual_embeds": objects()},
        target=[1, 4, 0],
        named={"attention_mask": mask(), "visual_attention_mask": object_mask()},
        tokens=(7, 4),
    )


def _blip_config(attention: str) -> Any:
    text = {**JOINT, "encoder_hidden_size": 16, "bos_token_id": 1, "sep_token_id": 2}
    return transformers.BlipConfig(
        text_config=text,
        vision_config=VISION,
        projection_dim=8,
        image_text_hidden_size=8,
        attn_implementation=attention,
    )


def blip_matching(attention: str) -> Subject:
    """Whether the text describes the image: the head on text that attends to the image."""
    config = _blip_config(attention)
    return Subject(
        with_random_weights(transformers.BlipForImageTextRetrieval(config)),
        {"input_ids": ids(), "pixel_values": pixels()},
        target=[1, 0, 1],
        named={"attention_mask": mask()},
        tokens=(7, 4),
    )


def blip_contrast(attention: str) -> Subject:
    """How similar text and image are, each embedded by itself."""
    config = _blip_config(attention)
    model = with_random_weights(transformers.BlipForImageTextRetrieval(config))

    def similarity(**arguments: Tensor) -> Tensor:
        return model(**arguments, use_itm_head=False).itm_score.diagonal()

    return Subject(
        similarity,
        {"input_ids": ids(), "pixel_values": pixels()},
        target=None,
        named={"attention_mask": mask()},
        tokens=(7, 4),
    )


def blip_answering(attention: str) -> Subject:
    """The next token of an answer; the model's own forward gives no logits but a loss."""
    config = _blip_config(attention)
    model = with_random_weights(transformers.BlipForQuestionAnswering(config))

    def answer(
        input_ids: Tensor, pixel_values: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor
    ) -> Any:
        image = model.vision_model(pixel_values).last_hidden_state
        question = model.text_encoder(
            input_ids, attention_mask=attention_mask, encoder_hidden_states=image
        ).last_hidden_state
        return model.text_decoder(
            decoder_input_ids,
            encoder_hidden_states=question,
            encoder_attention_mask=attention_mask,
        )

    answers = ids()[:, :4].flip(0)
    return Subject(
        answer,
        {"input_ids": ids(), "pixel_values": pixels(), "decoder_input_ids": answers},
        target=[(3, 7), (1, 12), (2, 0)],
        named={"attention_mask": mask()},
        tokens=(7, 4, 4),
    )


def clip(attention: str) -> Subject:
    text = {
        **TEXT,
        "num_hidden_layers": 2,
        "max_position_embeddings": 7,
        "bos_token_id": 1,
        "eos_token_id": 29,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config=VISION, projection_dim=8, attn_implementation=attention
    )
    model = with_random_weights(transformers.CLIPModel(config))

    def similarity(**arguments: Tensor) -> Tensor:
        return model(**arguments).logits_per_image.diagonal()

    # A text is read where it ends.
    ends = torch.arange(7) == torch.tensor(LENGTHS)[:, None] - 1
    return Subject(
        similarity,
        {"input_ids": (ids() % 28 + 1).masked_fill(ends, 29), "pixel_values": pixels()},
        target=None,
        named={"attention_mask": mask()},
        tokens=(7, 4),
    )


def siglip(attention: str) -> Subject:
    """A text is read at its last token: all are padded to one length, and nothing is masked."""
    text = {
        **TEXT,
        "num_hidden_layers": 2,
        "max_position_embeddings": 7,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.SiglipConfig(
        text_config=text, vision_config=VISION, attn_implementation=attention
    )
    model = with_random_weights(transformers.SiglipModel(config))

    def similarity(**arguments: Tensor) -> Tensor:
        return model(**arguments).logits_per_image.diagonal()

    inputs = {"input_ids": ids(), "pixel_values": pixels()}
    return Subject(similarity, inputs, target=None, tokens=(7, 4))
