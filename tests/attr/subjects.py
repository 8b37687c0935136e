"""Tiny models with the arguments of one call, and every method, for the tests to combine."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import timm.models.deit
import timm.models.swin_transformer
import timm.models.vision_transformer
import torch
import torchvision
import transformers
from torch import Tensor, nn

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

Method = Callable[..., TransformerMethod]

# Relevance is handed from token to token by attention maps: spread over patches.
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
# Each way that relevance takes; the other methods differ in options, or in what they make of it.
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

CLASSES = 5


@dataclass(frozen=True)
class Subject:
    """A model with the arguments of one call.

    Attributes:
        model: what is explained.
        inputs: as given to ``attribute``: a tensor, a tuple or, by name, a dict.
        target: one class, or tuple of indices, per sample; None for one score per sample.
        extra: additional forward arguments.
        tokens: how many tokens come from each input.
        named: additional forward arguments by name.
    """

    model: Any
    inputs: Any
    target: Any
    extra: Any = None
    tokens: tuple[int, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Subject":
        """Changes each tensor argument, also the additional ones."""

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
        """The same for some of the samples."""
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


def drawn(*size: int, seed: int = 0) -> Tensor:
    """Standard normal values, the same at each call."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases and embeddings large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            continue  # a temperature
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1 and name.endswith("weight"):
            noise = 1 + 0.2 * noise
        elif parameter.ndim == 1:
            noise = 0.2 * noise
        else:
            noise = noise * 1.5 * parameter[0].numel() ** -0.5
        parameter.data.copy_(noise)
    return model.double().eval()


IMAGE = (8, 12)


def images(samples: int = 3) -> Tensor:
    return drawn(samples, 3, *IMAGE, seed=1)


def timm_vit(**options: Any) -> nn.Module:
    sizes = {"img_size": IMAGE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    vit = timm.models.vision_transformer.VisionTransformer
    return with_random_weights(vit(**{**sizes, "num_classes": CLASSES, **options}))


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


def torchvision_vit() -> nn.Module:
    return with_random_weights(
        torchvision.models.VisionTransformer(
            image_size=8,
            patch_size=4,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
            num_classes=CLASSES,
        )
    )


def _torchvision_vit() -> Subject:
    return Subject(torchvision_vit(), drawn(3, 3, 8, 8, seed=1), [1, 4, 0], tokens=(4,))


def hf_vit(attention: str = "sdpa") -> nn.Module:
    config = transformers.ViTConfig(
        image_size=IMAGE,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.ViTForImageClassification(config))


def _hf_vit() -> Subject:
    return Subject(hf_vit(), images(), [1, 4, 0], tokens=(6,))


def bert(attention: str = "sdpa") -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    return with_random_weights(transformers.BertForSequenceClassification(config))


LENGTHS = [7, 5, 3]


def ids() -> Tensor:
    return torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(2))


def mask() -> Tensor:
    return (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()


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


class EncoderClassifier(nn.Module):
    """``nn.TransformerEncoder`` on embeddings, with a mean over the tokens that are no padding."""

    def __init__(self, *, batch_first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=batch_first, norm_first=norm_first, dropout=0.1
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = embeddings if self.batch_first else embeddings.transpose(0, 1)
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        kept = torch.ones_like(tokens[..., :1]) if padding is None else ~padding[..., None]
        return self.head((tokens * kept).sum(1) / kept.sum(1))


def embeddings() -> Tensor:
    return drawn(3, 7, 16, seed=3)


def encoder(**options: bool) -> nn.Module:
    return with_random_weights(EncoderClassifier(**options))


def _encoder(**options: bool) -> Subject:
    extra = (mask() == 0,)
    return Subject(encoder(**options), embeddings(), [1, 4, 0], extra, tokens=(7,))


class PixelsAndIds(nn.Module):
    """Patches and words in one sequence, read from a learned token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.words = nn.Embedding(30, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.ModuleList(
            timm.models.vision_transformer.Block(16, 2, qkv_bias=True) for _ in range(2)
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        cls = self.cls.expand(len(ids), -1, -1)
        tokens = torch.cat([cls, patches, self.words(ids)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


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
    """A fresh one, in float64 and evaluation mode."""
    built = _built(name).map(torch.clone)
    return replace(built, model=copy.deepcopy(built.model))


def shared_out(names: Iterable[str]) -> list[tuple[str, str]]:
    """Models with the methods that are asked of them.

    Each way that relevance takes is asked of every model. The other methods differ from these in
    what is no matter of the model: each is asked of every third one, of another third than the
    next method.
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
    """What a method says of a subject; computed once for all tests. Don't write into it."""
    return as_tuple(subject(name).attribute(METHODS[method]))


def assert_close(actual: Any, expected: Any, relative: float = 1e-9) -> None:
    """Compares with the largest value of each expected tensor."""
    for a, e in zip(as_tuple(actual), as_tuple(expected), strict=True):
        assert a.shape == e.shape
        assert a.isfinite().all()
        error = float((a.double() - e.double()).abs().max())
        largest = float(e.double().abs().max())
        assert error <= relative * largest, f"off by {error / (largest or 1):.1e} of the largest"
