"""One model of each kind of attention in Transformers, and how exactly each method explains it.

Prints a table when run: ``python -m tests.attr.kinds_of_attention``.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import transformers
from torch import Tensor

from captum_transformer.calling import Arguments
from captum_transformer.trace import traced_forward
from tests.attr import generators, two_modalities
from tests.attr.subjects import METHODS, Subject, as_tuple
from tests.attr.tiny_models import mask


@dataclass(frozen=True)
class Kind:
    """A model and how it attends.

    Attributes:
        build: makes it, given an attention implementation.
        name: of its class in Transformers.
        kept: for each input that has padding, which of its tokens are none, by the input's place.
        in_double: whether the model computes in float64 throughout when it is told to.
    """

    build: Callable[[str], Subject]
    name: str
    kept: dict[int, Callable[[], Tensor]]
    in_double: bool = True

    @property
    def attentions(self) -> tuple[str, ...]:
        """Its implementations of attention."""
        fused = getattr(getattr(transformers, self.name), "_supports_sdpa", False)
        return ("sdpa", "eager") if fused else ("eager",)


def _patches(pixel_mask: Tensor, stride: int) -> Tensor:
    return pixel_mask[:, ::stride, ::stride].flatten(1)


TEXT = {0: mask}
OBJECTS = two_modalities.object_mask

_KINDS = {
    "LXMERT": Kind(
        two_modalities.lxmert, "LxmertForQuestionAnswering", {0: mask, 1: OBJECTS, 2: OBJECTS}
    ),
    "ViLT": Kind(
        two_modalities.vilt,
        "ViltForQuestionAnswering",
        {0: mask, 1: lambda: _patches(two_modalities.pixel_mask(), 4)},
    ),
    "VisualBERT": Kind(
        two_modalities.visual_bert, "VisualBertForQuestionAnswering", {0: mask, 1: OBJECTS}
    ),
    "BLIP, matching": Kind(two_modalities.blip_matching, "BlipForImageTextRetrieval", TEXT),
    "BLIP, contrast": Kind(two_modalities.blip_contrast, "BlipForImageTextRetrieval", TEXT),
    # Its decoder attends to the whole question, padding included.
    "BLIP, answering": Kind(two_modalities.blip_answering, "BlipForQuestionAnswering", {}),
    "CLIP": Kind(two_modalities.clip, "CLIPModel", TEXT, in_double=False),
    "SigLIP": Kind(two_modalities.siglip, "SiglipModel", {}, in_double=False),
    "DETR": Kind(
        generators.detr,
        "DetrForObjectDetection",
        {0: lambda: _patches(generators.image_mask(), 8)},
    ),
    "T5": Kind(generators.t5, "T5ForConditionalGeneration", TEXT),
    "BART": Kind(generators.bart, "BartForConditionalGeneration", TEXT),
    "Whisper": Kind(generators.whisper, "WhisperForConditionalGeneration", {}),
    "GPT-2": Kind(generators.gpt2, "GPT2LMHeadModel", TEXT),
    "Llama": Kind(generators.llama, "LlamaForCausalLM", TEXT, in_double=False),
    "Qwen3": Kind(generators.qwen3, "Qwen3ForCausalLM", TEXT, in_double=False),
    "Mixtral": Kind(generators.mixtral, "MixtralForCausalLM", TEXT, in_double=False),
    "Gemma-3": Kind(generators.gemma3, "Gemma3ForCausalLM", TEXT, in_double=False),
}
# Those that the installed Transformers has.
KINDS = {name: kind for name, kind in _KINDS.items() if hasattr(transformers, kind.name)}
FUSED = tuple(name for name, kind in KINDS.items() if "sdpa" in kind.attentions)


@cache
def subject(name: str, attention: str | None = None) -> Subject:
    """The model with its call, in float64, with its first implementation of attention."""
    return KINDS[name].build(attention or KINDS[name].attentions[0])


@cache
def attributed(name: str, method: str, attention: str | None = None) -> tuple[Tensor, ...]:
    """What a method says of it; computed once for all tests. Don't write into it."""
    return as_tuple(subject(name, attention).attribute(METHODS[method]))


@cache
def attributed_tokens(name: str, method: str) -> tuple[Tensor, ...]:
    """What it says of its tokens; computed once for all tests. Don't write into it."""
    return as_tuple(subject(name).attribute_tokens(METHODS[method]))


def difference(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest one, as a share of the largest expected value of each tensor."""
    return max(
        float((a - e).abs().max() / e.abs().max().clamp(min=torch.finfo(e.dtype).tiny))
        for a, e in zip(actual, expected, strict=True)
    )


def streams(name: str, attention: str | None = None) -> list[str]:
    """Which tokens attend to which, as the trace has found."""
    given = subject(name, attention)
    with traced_forward(given.model, Arguments(given.inputs, None, given.named)) as forward:
        pairs = dict.fromkeys(forward.whole.streams.pairs())
    return [q if q == k else f"{q} to {k}" for q, k in pairs]


def _row(name: str, method: str) -> Iterator[str]:
    given = subject(name)
    start = time.perf_counter()
    together = as_tuple(given.attribute(METHODS[method]))
    yield f"{time.perf_counter() - start:.2f}"
    alone = [as_tuple(given.samples([i]).attribute(METHODS[method])) for i in range(3)]
    yield f"{difference(together, tuple(map(torch.cat, zip(*alone, strict=True)))):.0e}"
    eager = attributed(name, method, "eager") if name in FUSED else together
    yield f"{difference(together, eager):.0e}" if name in FUSED else "-"


def print_table() -> None:
    torch.set_num_threads(1)
    head = ("model", "method", "seconds", "batch or one by one", "sdpa or eager", "streams")
    row = "| {:15} | {:36} | {:>7} | {:>19} | {:>13} | {} |".format
    print(row(*head), row(*("-" * len(h) for h in head)), sep="\n")  # noqa: T201
    for name in KINDS:
        for method in METHODS:
            print(row(name, method, *_row(name, method), ", ".join(streams(name))), flush=True)  # noqa: T201


if __name__ == "__main__":
    print_table()
