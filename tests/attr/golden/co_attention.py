"""Generic attention-model explainability, of models with several streams of tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    GenericAttentionRelevance,
    RawAttention,
)
from captum_transformer.attr.attention_flow_method import AttentionFlowMethod
from tests.attr.golden.calls import Call, FirstTarget, Traced, last_sum, logits
from tests.attr.golden.cases import Case, Stored, load_stored, loads
from tests.attr.golden.comparison import EXACT, Golden

# Transformers computes CLIP's softmax in float32.
CLIP_SOFTMAX = 1e-5
BOTH = ("sdpa", "eager")
# The DETR of older Transformers has eager attention only, and computes positions in float32.
OLD_DETR = not transformers.DetrForObjectDetection._supports_sdpa
OLD_POSITIONS = 1e-6


# What parameters of DETR were called before Transformers 5.
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


@dataclass(frozen=True)
class Maps:
    """One of a method's relevance maps, once per target.

    Attributes:
        method: its class.
        options: what it is made with.
        of: the streams of its queries and keys.
        reduce: what of the map is compared.
    """

    method: type[AttentionFlowMethod]
    options: dict[str, Any]
    of: tuple[str, str]
    reduce: Callable[[Tensor], Tensor] = lambda matrix: matrix

    def __call__(self, case: Case) -> Tensor:
        method: Any = self.method(case.model, **self.options)

        def one(target: Any) -> Tensor:
            return self.reduce(method.relevance_maps(case.inputs, target, case.extra)[self.of])

        return case.per_target(one)

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.method.__name__}({options}).relevance_maps, {'-'.join(self.of)}"


def overwritten(*index: int) -> Callable[[Tensor], Tensor]:
    """With zero at an entry, as the authors leave it."""

    def overwrite(tensor: Tensor) -> Tensor:
        result = tensor.clone()
        result[(..., *index)] = 0
        return result

    return overwrite


def first_row(matrix: Tensor) -> Tensor:
    return matrix[..., 0, :]


def same(tensor: Tensor) -> Tensor:
    return tensor


def of_input(number: int, then: Callable[[Tensor], Tensor] = same) -> Callable[..., Tensor]:
    """What is compared of the attributions of several inputs."""
    return lambda attributions: then(attributions[number])


# The paper's own method, and the ablation of its equation 10.
OURS: dict[str, dict[str, Any]] = {
    "ours.normTrue": {},
    "ours.normFalse": {"normalize": False},
    "ours.normTrue.noself10": {"contextualize": False},
}
# The authors' whole maps hold what passes no attention.
WHOLE = {"with_identity": True}
UNSCALED = {"pooling": "map", "rescale": False}


def _lxmert() -> Iterator[Golden]:
    expect = partial(Golden, "lxmert_iccv21")
    streams = {"t": "input_ids", "i": "visual_feats"}
    kept = {"R_t_t": overwritten(0, 0)}

    def maps(key: str, method: type[AttentionFlowMethod], **options: Any) -> Maps:
        _, q, k = key.split("_")
        return Maps(method, options, (streams[q], streams[k]), kept.get(key, same))

    yield expect("logits", Traced(logits))
    for variant, options in OURS.items():
        keys = ("R_t_t", "R_t_i") if "noself10" in variant else ("R_t_t", "R_t_i", "R_i_i", "R_i_t")
        for key in keys:
            yield expect(
                f"{variant}.{key}", maps(key, GenericAttentionRelevance, **options, **WHOLE)
            )
        words = Call(GenericAttentionRelevance, options, reduce=of_input(0, overwritten(0)))
        regions = Call(GenericAttentionRelevance, options, reduce=of_input(1))
        features = replace(regions, tokens=False, reduce=of_input(1, last_sum))
        yield expect(f"{variant}.R_t_t", words, part=first_row)
        yield expect(f"{variant}.R_t_i", regions, part=first_row)
        yield expect(f"{variant}.R_t_i", features, part=first_row)
    for key, layer in (("R_t_t", -1), ("R_t_i", -2)):
        cam = maps(key, AttentionGradCam, layer=layer, **UNSCALED)
        yield expect(f"raw_attn.{key}", FirstTarget(maps(key, RawAttention, layer=layer)))
        yield expect(f"attn_gradcam.{key}", cam)
        yield expect(f"rollout.{key}", FirstTarget(maps(key, AttentionRollout, **WHOLE)))


def _visualbert() -> Iterator[Golden]:
    expect = partial(Golden, "visualbert_iccv21")

    def row(method: type[AttentionFlowMethod], **options: Any) -> Call:
        return Call(method, options, reduce=lambda pair: _without_read_token(torch.cat(pair, -1)))

    yield expect("logits", Traced(logits))
    yield expect("ours", row(GenericAttentionRelevance))
    yield expect("raw_attn", FirstTarget(row(RawAttention)))
    yield expect("attn_gradcam", row(AttentionGradCam, pooling="map"))
    for start in (0, 1):
        rollout = row(AttentionRollout, start_layer=start, normalize_rows=False)
        yield expect(f"rollout.start_layer{start}", FirstTarget(rollout))


def _without_read_token(rows: Tensor) -> Tensor:
    """The authors overwrite the entry of the token that the answer is read from."""
    mask = load_stored("visualbert_iccv21").inputs["attention_mask"]
    return rows.scatter(1, mask.sum(1, keepdim=True) - 2, 0.0)


def _tolerance(name: str) -> float:
    return OLD_POSITIONS if name == "detr_iccv21" and OLD_DETR else EXACT


def _encoder_decoder(name: str, queries: str, keys: str, row: Any) -> Iterator[Golden]:
    """What the code for DETR gives, row by row and as whole maps."""
    expect = partial(Golden, name, tolerance=_tolerance(name))
    yield expect("logits", Traced(logits))
    for variant, options in OURS.items():
        yield expect(variant, row(GenericAttentionRelevance, **options))
        if "noself10" not in variant:
            pair = Maps(GenericAttentionRelevance, options | WHOLE, (queries, keys))
            yield expect(variant.replace("ours", "R_q_i"), pair)
    yield expect("R_q_q", Maps(GenericAttentionRelevance, WHOLE, (queries, queries)))
    yield expect("raw_attn", row(RawAttention))
    yield expect("rollout", row(AttentionRollout))


def _detr() -> Iterator[Golden]:
    def row(method: type[AttentionFlowMethod], **options: Any) -> Call:
        return Call(method, options)

    streams = ("learned", "pixel_values")
    expect = partial(Golden, "detr_iccv21", tolerance=_tolerance("detr_iccv21"))
    yield from _encoder_decoder("detr_iccv21", *streams, row)
    yield expect("R_i_i", Maps(GenericAttentionRelevance, WHOLE, streams[1:] * 2))
    yield expect("attn_gradcam", row(AttentionGradCam, **UNSCALED))


def _bart() -> Iterator[Golden]:
    def row(method: type[AttentionFlowMethod], **options: Any) -> Call:
        return Call(method, options, reduce=of_input(0))

    def both(method: type[AttentionFlowMethod], **options: Any) -> FirstTarget:
        return FirstTarget(row(method, **options))

    def unpadded(matrix: Tensor) -> Tensor:
        mask = load_stored("bart_iccv21").inputs["attention_mask"]
        return matrix * mask[:, :, None] * mask[:, None]

    streams = ("decoder_input_ids", "input_ids")
    expect = partial(Golden, "bart_iccv21")
    yield from _encoder_decoder("bart_iccv21", *streams, row)
    yield expect("R_i_i", Maps(GenericAttentionRelevance, WHOLE, streams[1:] * 2, unpadded))
    yield expect("attn_gradcam", row(AttentionGradCam, pooling="open", rescale=False))
    yield expect("padded_official.attn_gradcam", row(AttentionGradCam, **UNSCALED))
    yield expect("padded_official.ours.normFalse", row(GenericAttentionRelevance, normalize=False))
    yield expect("padded_official.raw_attn", row(RawAttention))
    yield expect("padded_official.rollout", row(AttentionRollout))


def _clip() -> Iterator[Golden]:
    expect = partial(Golden, "clip_iccv21", tolerance=CLIP_SOFTMAX)

    def by_pair(tensor: Tensor) -> Tensor:
        """From a batch of pairs to ``(images, texts, ...)``; there is one target."""
        return tensor.unflatten(0, (2, 3))

    def paired(compute: Callable[[Case], Tensor]) -> Callable[[Case], Tensor]:
        return lambda case: by_pair(compute(case)[:, 0])

    yield expect("logits_per_image", lambda case: by_pair(case.model(*case.inputs)).detach())
    for label, start in (("default_last", -1), ("0", 0), ("1", 1), ("2", 2)):
        options = {"start_layer": start}
        words = Call(GenericAttentionRelevance, options, reduce=of_input(0, _shares_of_words))
        patches = Call(GenericAttentionRelevance, options, reduce=of_input(1))
        text = Maps(GenericAttentionRelevance, options | WHOLE, ("input_ids", "input_ids"))
        yield expect(f"image_relevance.start_layer_{label}", paired(patches))
        yield expect(f"R_text.start_layer_{label}", paired(text))
        yield expect(f"text_scores.start_layer_{label}", paired(words))


def _shares_of_words(rows: Tensor) -> Tensor:
    """The authors leave out the start and the end of the text, and divide by the sum."""
    ends = load_stored("clip_iccv21").inputs["input_ids"].argmax(1).repeat(2)
    places = torch.arange(rows.shape[1])
    words = rows * ((places > 0) & (places < ends[:, None]))
    return words / words.sum(1, keepdim=True)


# The official rules give no relevance at all where the encoder's input is padded: the rows of
# padded tokens are zero, divided by zero. What the unpadded sample gives is expected instead.
NOT_REPRODUCED = {("bart_iccv21", "padded_official.ours.normTrue")}

GOLDEN = (*_lxmert(), *_visualbert(), *_detr(), *_bart(), *_clip())
