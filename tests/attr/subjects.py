"""Every method, and tiny models with the arguments of one call, for the tests to combine."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import timm.models.deit
import timm.models.swin_transformer
import torch
import transformers
from torch import Tensor

from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerMethod,
)
from tests.attr.tiny_models import (
    CLASSES,
    IMAGE,
    PixelsAndIds,
    bert,
    drawn,
    embeddings,
    encoder,
    hf_vit,
    ids,
    images,
    mask,
    timm_vit,
    torchvision_vit,
    with_random_weights,
)

Method = Callable[..., TransformerMethod]

# Attention maps pass relevance from token to token; it is spread evenly over patches.
FLOW_METHODS: dict[str, Method] = {
    "TransformerAttribution": TransformerAttribution,
    "TransformerAttribution, normalised": partial(TransformerAttribution, normalize_rows=True),
    "TransformerAttribution, from layer 1": partial(TransformerAttribution, start_layer=1),
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "AttentionRollout": AttentionRollout,
    "RawAttention": RawAttention,
    "AttentionGradCam": AttentionGradCam,
    "AttentionGradCam, map": partial(AttentionGradCam, pooling="map"),
    "PartialLRP": PartialLRP,
    "PartialLRP, weighted": partial(PartialLRP, gradient_weighting=True),
}
# Relevance of each input value.
INPUT_METHODS: dict[str, Method] = {
    "full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "AttnLRP": AttnLRP,
    "AttnLRP, gamma": partial(AttnLRP, gamma=0.25, conv_gamma=1.0),
    "ConservativeLRP": ConservativeLRP,
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "ConservativeLRP, gamma": partial(ConservativeLRP, gamma=0.1),
    "ConservativeLRP, held mean": partial(ConservativeLRP, hold_mean=True),
    "gradient x input": partial(ConservativeLRP, attention_rule=False, layer_norm_rule=False),
}
METHODS = FLOW_METHODS | INPUT_METHODS
# One method for each kind of backward pass; the others differ in options, or in a last step.
EACH_WAY = (
    "AttentionRollout",
    "AttnLRP",
    "ConservativeLRP",
    "GIM",
    "GenericAttentionRelevance",
    "TransformerAttribution",
    "full LRP",
)
# These divide by sums that may nearly cancel, so they magnify the rounding errors of a model:
# weights changed by a two-thousandth, as by bfloat16, already give other maps of a random model.
MAGNIFY_ROUNDING = frozenset(
    name for name in METHODS if "Transformer" in name or " LRP" in name or "Partial" in name
) | {"ConservativeLRP, gamma"}


@dataclass(frozen=True)
class Subject:
    """A model with the arguments of one call.

    Attributes:
        model: the explained model.
        inputs: as passed to ``attribute``: a tensor, a tuple or, by name, a dict.
        target: one class, or tuple of indices, per sample; None for one score per sample.
        extra: additional forward arguments.
        tokens: the number of tokens of each input.
        named: additional forward arguments by name.
    """

    model: Any
    inputs: Any
    target: Any
    extra: Any = None
    tokens: tuple[int, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Subject":
        """Applies a function to each tensor argument, including the additional ones."""

        def changed(argument: Any) -> Any:
            if isinstance(argument, tuple):
                return tuple(changed(a) for a in argument)
            if isinstance(argument, dict):
                return {key: changed(a) for key, a in argument.items()}
            return change(argument) if isinstance(argument, Tensor) else argument

        given = {name: changed(getattr(self, name)) for name in ("inputs", "extra", "named")}
        return replace(self, **given)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs and the additional arguments."""
        return (*as_tuple(self.inputs), *(self.extra or ()))

    def samples(self, indices: list[int]) -> "Subject":
        """The same model with some of the samples."""
        chosen = self.map(lambda t: t[indices])
        target = self.target and [self.target[i] for i in indices]
        return replace(chosen, target=target)

    def to(self, where: Any) -> "Subject":
        """Model and floating point tensors in another precision, or all on another device."""
        self.model.to(where)
        floats_only = isinstance(where, torch.dtype)
        return self.map(lambda t: t if floats_only and not t.is_floating_point() else t.to(where))

    def attribute(self, method: Method, **changes: Any) -> Any:
        return method(self.model).attribute(self.inputs, **self._arguments(changes))

    def attribute_tokens(self, method: Method, **changes: Any) -> Any:
        return method(self.model).attribute_tokens(self.inputs, **self._arguments(changes))

    def _arguments(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {
            "target": self.target,
            "additional_forward_args": self.extra,
            "additional_forward_kwargs": self.named,
            **changes,
        }


def _vit() -> Subject:
    return Subject(timm_vit(), images(), [1, 4, 0], tokens=(6,))


def _vit_with_registers() -> Subject:
    model = timm_vit(
        reg_tokens=2, global_pool="avg", init_values=0.5, qk_norm=True, no_embed_class=True
    )
    return Subject(model, images(), [1, 4, 0], tokens=(6,))


def _deit() -> Subject:
    model = timm.models.deit.VisionTransformerDistilled(
        img_size=IMAGE, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES
    )
    return Subject(with_random_weights(model), images(), [1, 4, 0], tokens=(6,))


def _swin() -> Subject:
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=16,
        patch_size=2,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        num_classes=CLASSES,
    )
    return Subject(with_random_weights(model), drawn(3, 3, 16, 16), [1, 4, 0], tokens=(64,))


def _torchvision_vit() -> Subject:
    return Subject(torchvision_vit(), drawn(3, 3, 8, 8, seed=1), [1, 4, 0], tokens=(4,))


def _hf_vit() -> Subject:
    return Subject(hf_vit(), images(), [1, 4, 0], tokens=(6,))


def _bert(attention: str) -> Subject:
    return Subject(bert(attention), ids(), [1, 4, 0], (mask(),), tokens=(7,))


def _gpt2() -> Subject:
    config = transformers.GPT2Config(
        vocab_size=30,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        num_labels=CLASSES,
        pad_token_id=0,
    )
    model = with_random_weights(transformers.GPT2ForSequenceClassification(config))
    return Subject(model, ids(), [1, 4, 0], tokens=(7,))


def _encoder(**options: bool) -> Subject:
    extra = (mask() == 0,)
    return Subject(encoder(**options), embeddings(), [1, 4, 0], extra, tokens=(7,))


def _pixels_and_ids() -> Subject:
    model = with_random_weights(PixelsAndIds())
    return Subject(model, (images(), ids()), [1, 4, 0], tokens=(6, 7))


_BUILDERS: dict[str, Callable[[], Subject]] = {
    "timm ViT": _vit,
    "timm ViT, registers": _vit_with_registers,
    "timm DeiT, distilled": _deit,
    "timm Swin": _swin,
    "torchvision ViT": _torchvision_vit,
    "Transformers ViT": _hf_vit,
    "BERT": partial(_bert, "sdpa"),
    "BERT, eager": partial(_bert, "eager"),
    "GPT-2": _gpt2,
    "nn.TransformerEncoder": _encoder,
    "nn.TransformerEncoder, norm first": partial(_encoder, norm_first=True),
    "nn.TransformerEncoder, tokens first": partial(_encoder, batch_first=False),
    "pixels and ids": _pixels_and_ids,
}
SUBJECTS = tuple(_BUILDERS)
# Read from the mean of their tokens.
POOLED = tuple(
    name for name in SUBJECTS if "registers" in name or "Swin" in name or "Encoder" in name
)


@cache
def _built(name: str) -> Subject:
    return _BUILDERS[name]()


def subject(name: str) -> Subject:
    """A new copy, in float64 and evaluation mode."""
    built = _built(name).map(torch.clone)
    return replace(built, model=copy.deepcopy(built.model))


def shared_out(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of models and methods.

    Each method of ``EACH_WAY`` is paired with every model. The others differ from these in ways
    that don't depend on the model: each is paired with every third model, in turn.
    """
    others = [method for method in METHODS if method not in EACH_WAY]
    return [
        (name, method)
        for place, name in enumerate(names)
        for method in (*EACH_WAY, *others[-place % 3 :: 3])
    ]


def as_tuple(tensors: Any) -> tuple[Tensor, ...]:
    if isinstance(tensors, dict):
        return tuple(tensors.values())
    return tensors if isinstance(tensors, tuple) else (tensors,)


@cache
def attributed(name: str, method: str) -> tuple[Tensor, ...]:
    """The explanation of a subject, computed once for all tests. Don't write into it."""
    return as_tuple(subject(name).attribute(METHODS[method]))


def assert_close(actual: Any, expected: Any, relative: float = 1e-9) -> None:
    """Compares values, relative to the largest of each expected tensor."""
    for a, e in zip(as_tuple(actual), as_tuple(expected), strict=True):
        assert a.shape == e.shape
        assert a.isfinite().all()
        error = float((a.double() - e.double()).abs().max())
        largest = float(e.double().abs().max())
        assert error <= relative * largest, f"off by {error / (largest or 1):.1e} of the largest"


def assert_identical(actual: Any, expected: Any) -> None:
    """Compares bit by bit; NaN equals NaN."""
    for one, other in zip(as_tuple(actual), as_tuple(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
