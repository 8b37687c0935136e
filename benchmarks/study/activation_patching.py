"""Activation patching of a GPT-2, exactly: one forward pass for each part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.study.data.agreement import Sentences
from benchmarks.study.store import Maps

KINDS = ("MLP", "attention", "residual", "head")
"""What is patched: the first three at each position, heads at all positions together."""


def layers_of(model: nn.Module, kind: str) -> list[nn.Module]:
    """The modules whose outputs are patched; for heads those that get what the heads make."""
    inside: dict[str, Callable[[Any], nn.Module]] = {
        "MLP": lambda block: block.mlp,
        "attention": lambda block: block.attn,
        "residual": lambda block: block,
        "head": lambda block: block.attn.c_proj,
    }
    blocks: Any = model.get_submodule("transformer.h")
    return [inside[kind](block) for block in blocks]


@torch.no_grad()
def patched(model: Any, sentences: Sentences) -> Maps:
    """How much the right verb gains on the wrong one by each part's values on clean sentences.

    Returns:
        For each kind ``(samples, layers, words)`` of the subject and the words behind it, NaN where
        the verb has come; for heads ``(samples, layers, heads)``.
    """
    rows = torch.arange(len(sentences.ids))

    def score(ids: Tensor) -> Tensor:
        logits = model(ids).logits[rows, sentences.last]
        found: Tensor = logits[rows, sentences.right] - logits[rows, sentences.wrong]
        return found

    clean, corrupted = sentences.prompts(), sentences.swapped()
    before = score(corrupted)
    places, reached = sentences.from_subject()
    changes: Maps = {}
    for kind in KINDS:
        of_layers = []
        for layer in layers_of(model, kind):
            seen: list[Tensor] = []
            with _changed(layer, kind, lambda values, seen=seen: seen.append(values) or values):
                score(clean)
            found = []
            for chosen in _heads(model) if kind == "head" else _words(places, clean.shape[1]):
                parts = chosen.repeat_interleave(seen[0].shape[2] // chosen.shape[2], 2)
                put = partial(torch.where, parts, seen[0])
                with _changed(layer, kind, put):
                    found.append(score(corrupted) - before)
            of_layers.append(torch.stack(found, 1))
        changes[kind] = torch.stack(of_layers, 1)
        if kind != "head":
            changes[kind].masked_fill_(~reached[:, None], torch.nan)
    return changes


def _words(places: Tensor, length: int) -> Iterator[Tensor]:
    """One position of each sentence after the other, ``(samples, length, 1)``."""
    for of_samples in places.T:
        yield (torch.arange(length) == of_samples[:, None])[..., None]


def _heads(model: Any) -> Iterator[Tensor]:
    """One head after the other, ``(1, 1, heads)``."""
    for chosen in torch.eye(model.config.n_head, dtype=torch.bool):
        yield chosen[None, None]


@contextmanager
def _changed(layer: nn.Module, kind: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Runs the model with a layer's output, or what heads put into it, changed."""

    def of_inputs(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(inputs[0]), *inputs[1:])

    def of_output(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    if kind == "head":
        hook = layer.register_forward_pre_hook(of_inputs)
    else:
        hook = layer.register_forward_hook(of_output)
    try:
        yield
    finally:
        hook.remove()
