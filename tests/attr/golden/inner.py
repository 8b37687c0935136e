"""Relevance inside models: relevance patching (RelP), LibraGrad and FullGrad+."""

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor

from captum_transformer import (
    ConservativeLRP,
    Contrast,
    FullGradPlus,
    LibraGrad,
    RelevancePatching,
    TransformerMethod,
    extend,
)
from tests.attr.golden import models
from tests.attr.golden.cases import Case, Stored, loads
from tests.attr.golden.comparison import EXACT, Golden

PATCHING = {"relp_gpt2": EXACT, "relp_llama": 1e-5}  # Llama's norms run in float32
LIBRA = "libra_vit"
PLAIN: dict[str, Any] = {"attention_rule": False, "layer_norm_rule": False}
_PARTS = {
    "transformers.GPT2LMHeadModel": ("transformer.h", "attn.c_proj"),
    "transformers.LlamaForCausalLM": ("model.layers", "self_attn.o_proj"),
}


@loads(*PATCHING, attentions=("eager", "sdpa"))
def pair(stored: Stored, attention: str) -> Case:
    model: Any = models.pretrained(stored, attention)
    blocks, projection = _PARTS[stored.manifest["class"]]
    names = [f"{blocks}.{i}" for i in range(3)]
    model.nodes = {
        "resid": names,
        "attn_out": [f"{name}.{projection}" for name in names],
        "mlp_out": [f"{name}.mlp" for name in names],
    }
    last = stored.inputs["clean_ids"].shape[1] - 1
    sides = (
        [(last, word) for word in side.tolist()] for side in stored.inputs["targets"].unbind(1)
    )
    inputs = (stored.inputs["clean_ids"], stored.inputs["corrupt_ids"])
    return Case(model, inputs, [Contrast(*sides)], stored.expected)


def first(found: Any) -> Tensor:
    """Of what a layer has its tokens: Llama's blocks get rotary angles, too."""
    return found[0] if isinstance(found, tuple) else found


def scores(node: str, options: dict[str, Any]) -> Callable[[Case], Tensor]:
    def compute(case: Case) -> Tensor:
        model: Any = case.model
        found = RelevancePatching(model, **options).attribute(
            *case.inputs,
            model.nodes[node],
            case.targets[0],
            attribute_to_layer_input=node == "resid",
        )
        return torch.stack([first(of_layer).sum(-1) for of_layer in found])

    return compute


def coefficients(node: str, method: Callable[[Any], TransformerMethod]) -> Callable[[Case], Tensor]:
    """The gradient at a node: its relevance by what it is."""

    def compute(case: Case) -> Tensor:
        model: Any = case.model
        names, of_inputs = model.nodes[node], node == "resid"
        seen: list[Tensor] = []

        def note(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen.append((*args, *kwargs.values())[0] if of_inputs else output)

        held = [
            model.get_submodule(name).register_forward_hook(note, with_kwargs=True)
            for name in names
        ]
        with torch.no_grad():
            model(case.inputs[1])
        for hook in held:
            hook.remove()
        found = method(model).attribute_layers(
            case.inputs[1], names, case.targets[0], attribute_to_layer_input=of_inputs
        )
        return torch.stack([first(r) / first(a) for r, a in zip(found, seen, strict=True)])

    return compute


def last_logits(which: int) -> Callable[[Case], Tensor]:
    def compute(case: Case) -> Tensor:
        model: Any = case.model
        return model(case.inputs[which]).logits[:, -1].detach()

    return compute


def metric(which: int) -> Callable[[Case], Tensor]:
    """The score: what the relevance of a linear map of the logits alone adds up to."""

    def compute(case: Case) -> Tensor:
        model: Any = case.model
        contrast = case.targets[0]
        logits = model(case.inputs[which]).logits.detach()
        rows = range(len(logits))
        return torch.stack(
            [logits[(i, *contrast.target[i])] - logits[(i, *contrast.rather_than[i])] for i in rows]
        )

    return compute


_RULES: dict[str, tuple[dict[str, Any], Callable[[Any], TransformerMethod]]] = {
    "": ({}, LibraGrad),
    "_no_ah": ({"attention_rule": False}, lambda model: LibraGrad(model, attention_rule=False)),
    "_plain_gradient": ({"rules": {}}, lambda model: ConservativeLRP(model, **PLAIN)),
}


def _patching(case: str, tolerance: float) -> Iterator[Golden]:
    for which, name in enumerate(("clean", "corrupt")):
        yield Golden(case, f"logits_{name}", last_logits(which), tolerance)
        yield Golden(case, f"metric_{name}", metric(which), tolerance)
    for suffix, (options, method) in _RULES.items():
        for node in ("resid", "attn_out", "mlp_out"):
            yield Golden(case, f"score_{node}{suffix}", scores(node, options), tolerance)
            key = f"coefficient_{node}{suffix}"
            yield Golden(case, key, coefficients(node, method), tolerance)


@loads(LIBRA)
def vision_transformer(stored: Stored, attention: str) -> Case:
    model = timm.models.vision_transformer.VisionTransformer(**stored.manifest["kwargs"])
    model.load_state_dict(stored.state)
    model = model.double().eval()
    return Case(model, stored.inputs["pixels"], stored.targets(), stored.expected)


def plain_gradient(model: Any) -> extend.GradientMethod:
    return extend.GradientMethod(model, {})


class PlainFullGradPlus(FullGradPlus):
    """FullGrad+ with the plain gradient."""

    def _forward_rules(self, arguments: Any) -> Any:
        return None


def pixels(method: Callable[[Any], TransformerMethod]) -> Callable[[Case], Tensor]:
    return lambda case: case.per_target(
        lambda target: method(case.model).attribute(case.inputs, target)
    )


def blocks(method: Callable[[Any], TransformerMethod]) -> Callable[[Case], Tensor]:
    def compute(case: Case) -> Tensor:
        model: Any = case.model

        def read(target: Any) -> Tensor:
            found = method(model).attribute_layers(
                case.inputs, list(model.blocks), target, attribute_to_layer_input=True
            )
            return torch.stack([first(relevance).sum(-1) for relevance in found], 1)

        return case.per_target(read)

    return compute


def full(
    method: type[FullGradPlus], reduce: Callable[[Tensor], Tensor], *, biases: bool
) -> Callable[[Case], Tensor]:
    def compute(case: Case) -> Tensor:
        model: Any = case.model
        plus = method(model, list(model.blocks), biases=biases)
        return case.per_target(
            lambda target: reduce(torch.stack(plus.layer_maps(case.inputs, target), 1))
        )

    return compute


def _libra() -> Iterator[Golden]:
    yield Golden(LIBRA, "logits", lambda case: case.model(case.inputs).detach())
    for suffix, method, plus in (
        ("", LibraGrad, FullGradPlus),
        ("_plain_gradient", plain_gradient, PlainFullGradPlus),
    ):
        yield Golden(LIBRA, f"pixel_grad_x_input{suffix}", pixels(method))
        yield Golden(LIBRA, f"block_grad_x_input{suffix}", blocks(method))
        for key, reduce, biases in (
            ("fullgrad_block", lambda maps: maps, True),
            ("fullgrad_plus_with_bias_sum", lambda maps: maps.sum(1), True),
            ("fullgrad_plus_sum", lambda maps: maps.sum(1), False),
            ("fullgrad_plus_mean", lambda maps: maps.mean(1), False),
        ):
            yield Golden(LIBRA, f"{key}{suffix}", full(plus, reduce, biases=biases))


GOLDEN = (
    *(golden for case, tolerance in PATCHING.items() for golden in _patching(case, tolerance)),
    *_libra(),
)
