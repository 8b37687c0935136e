"""Generic attention-model explainability, of models with several streams of tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_transformer import (
    AttentionGradCam,
    AttentionRollout,
    GenericAttentionRelevance,
    RawAttention,
)
from captum_transformer.attr.attention_flow_method import AttentionFlowMethod
from tests.attr.golden.calls import Call, FirstTarget, Traced, last_sum, logits
from tests.attr.golden.cases import Case, load_stored
from tests.attr.golden.co_attention_models import OLD_DETR
from tests.attr.golden.comparison import EXACT, Golden

# Transformers computes CLIP's softmax in float32.
CLIP_SOFTMAX = 1e-5


OLD_POSITIONS = 1e-6


@dataclass(frozen=True)
class Maps:
    """One of a method's relevance maps, once per target.

    Attributes:
        method: the class of the method.
        options: its keyword arguments.
        of: the streams of the map's queries and keys.
        reduce: selects the part of the map that is compared.
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
    """Sets an entry to zero, as the authors do."""

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
    """Selects the attribution of one of several inputs."""
    return lambda attributions: then(attributions[number])


# The paper's own method, and the ablation of its equation 10.
OURS: dict[str, dict[str, Any]] = {
    "ours.normTrue": {},
    "ours.normFalse": {"normalize": False},
    "ours.normTrue.noself10": {"contextualize": False},
}
# The authors' whole maps include relevance that bypasses attention.
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
    """The outputs of the code for DETR, row by row and as whole maps."""
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


# With a padded input of the encoder, the official rules divide zero by zero, as the rows of padded
# tokens are zero. The map of the sample without padding is expected instead.
NOT_REPRODUCED = {("bart_iccv21", "padded_official.ours.normTrue")}

GOLDEN = (*_lxmert(), *_visualbert(), *_detr(), *_bart(), *_clip())
