"""Models with several streams of tokens, loaded with the inputs of their golden values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.attr.golden.cases import Case, Stored, loads

BOTH = ("sdpa", "eager")
# The DETR of older Transformers has eager attention only, and computes positions in float32.
OLD_DETR = not transformers.DetrForObjectDetection._supports_sdpa


# Names of DETR's parameters before Transformers 5.
FORMER_NAMES = {
    "backbone.model.": "backbone.conv_encoder.model.",
    ".o_proj.": ".out_proj.",
    ".mlp.fc": ".fc",
}


def _build(stored: Stored, name: str, config: Any) -> nn.Module:
    model = getattr(transformers, name)(config)
    state = stored.state
    if state.keys() != model.state_dict().keys():
        state = {_former(key): tensor for key, tensor in state.items()}
    model.load_state_dict(state)
    return model.double().eval()


def _former(key: str) -> str:
    for name, former in FORMER_NAMES.items():
        key = key.replace(name, former)
    return key


@contextmanager
def _double_by_default() -> Iterator[None]:
    """Transformers 4 writes masks for a float64 model into tensors of the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@loads("lxmert_iccv21")
def lxmert(stored: Stored, attention: str) -> Case:
    config = transformers.LxmertConfig(**stored.manifest["kwargs"])
    model = _build(stored, "LxmertForQuestionAnswering", config)
    given = stored.inputs

    def answer(input_ids: Tensor, visual_feats: Tensor, *rest: Tensor) -> Tensor:
        boxes, mask, types = rest
        output = model(input_ids, visual_feats, boxes, mask, token_type_ids=types)
        return output.question_answering_score

    extra = tuple(given[key] for key in ("visual_pos", "attention_mask", "token_type_ids"))
    inputs = (given["input_ids"], given["visual_feats"])
    return Case(answer, inputs, stored.targets(), stored.expected, extra)


@loads("visualbert_iccv21", attentions=("eager",))
def visualbert(stored: Stored, attention: str) -> Case:
    kwargs = stored.manifest["kwargs"]
    config = transformers.VisualBertConfig(**kwargs, attn_implementation=attention)
    model = _build(stored, "VisualBertForQuestionAnswering", config)
    names = ("attention_mask", "token_type_ids", "visual_attention_mask", "visual_token_type_ids")

    def answer(input_ids: Tensor, visual_embeds: Tensor, *rest: Tensor) -> Tensor:
        named = dict(zip(names, rest, strict=True))
        return model(input_ids=input_ids, visual_embeds=visual_embeds, **named).logits

    inputs = (stored.inputs["input_ids"], stored.inputs["visual_embeds"])
    extra = tuple(stored.inputs[name] for name in names)
    return Case(answer, inputs, stored.targets(), stored.expected, extra)


@loads("detr_iccv21", attentions=BOTH)
def detr(stored: Stored, attention: str) -> Case:
    if attention == "sdpa" and OLD_DETR:
        pytest.skip(f"DETR of Transformers {transformers.__version__} has eager attention only")
    backbone = transformers.ResNetConfig(**stored.manifest["backbone_kwargs"])
    # The backbone has no attention, hence no implementation of it to choose.
    implementation = {"": attention, "backbone_config": "eager"}
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        attn_implementation=implementation,
        **stored.manifest["kwargs"],
    )
    model = _build(stored, "DetrForObjectDetection", config)
    chosen = torch.stack([stored.inputs["target_query"], stored.inputs["target_class"]], -1)
    targets = [[tuple(pair) for pair in pairs] for pairs in chosen.transpose(0, 1).tolist()]
    extra = (stored.inputs["pixel_mask"],)
    return Case(model, stored.inputs["pixel_values"], targets, stored.expected, extra)


@loads("bart_iccv21", attentions=BOTH)
def bart(stored: Stored, attention: str) -> Case:
    manifest, given = stored.manifest, stored.inputs
    config = transformers.BartConfig(
        **manifest["kwargs"], **manifest["special"], attn_implementation=attention
    )
    model = _build(stored, "BartForConditionalGeneration", config)

    def generate(input_ids: Tensor, decoder_input_ids: Tensor, mask: Tensor) -> Tensor:
        with _double_by_default():
            return model(input_ids, mask, decoder_input_ids, use_cache=False).logits

    last = given["decoder_input_ids"].shape[1] - 1
    targets = [[(last, token) for token in tokens] for tokens in given["target_token"].T.tolist()]
    inputs = (given["input_ids"], given["decoder_input_ids"])
    return Case(generate, inputs, targets, stored.expected, (given["attention_mask"],))


@loads("clip_iccv21", attentions=BOTH)
def clip(stored: Stored, attention: str) -> Case:
    manifest = stored.manifest
    config = transformers.CLIPConfig(
        text_config=manifest["text"],
        vision_config=manifest["vision"],
        projection_dim=manifest["projection_dim"],
        attn_implementation=attention,
    )
    model = _build(stored, "CLIPModel", config)

    def similarity(input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        with _double_by_default():
            output = model(input_ids=input_ids, pixel_values=pixel_values)
        return output.logits_per_image.diagonal()

    ids, pixels = stored.inputs["input_ids"], stored.inputs["pixel_values"]
    pairs = (ids.repeat(len(pixels), 1), pixels.repeat_interleave(len(ids), 0))
    return Case(similarity, pairs, [None], stored.expected)
