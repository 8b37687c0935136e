"""Passes the relevance of generated tokens on to the tokens that they were generated from."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Explains the generated tokens' scores, each times a weight (samples, generated tokens).
Explain = Callable[[Tensor], Sequence[Tensor]]


def followed(
    maps: Sequence[Tensor],
    of_tokens: Sequence[bool],
    place: int,
    start: int,
    hops: int | None,
    explain: Explain,
) -> list[Tensor]:
    """Passes relevance on from generated tokens, until it reaches the prompt or other inputs.

    In one hop, all generated tokens with relevance of one sign are explained together, each
    weighted by its relevance. Their relevance is then divided among the entries that support
    them, in proportion, so the total is conserved. If no entry supports a score, its relevance
    stays on the token.

    Args:
        maps: the relevance of each input of the model, samples first.
        of_tokens: which of the inputs are token ids, with one entry for each token.
        place: the index of the input whose ids ``(samples, tokens)`` contain the generated tokens.
        start: the index of the first generated token.
        hops: the largest number of hops; None to continue until nothing is left to pass on.
        explain: returns the relevance of each input for a sum of the generated tokens' scores.
    """
    if hops == 0:
        return list(maps)
    found = [_precise(tensor).clone() for tensor in maps]
    whole = sum(tensor.abs().flatten(1).sum(1) for tensor in found)
    moving = found[place][:, start:].clone()
    staying = torch.zeros_like(moving)
    # No score depends on later tokens, so each hop leads to earlier ones.
    limit = moving.shape[1] if hops is None else min(hops, moving.shape[1])
    least = torch.finfo(moving.dtype).eps * whole
    for _ in range(limit):
        if not bool((moving.abs().sum(1) > least).any()):
            break
        found[place][:, start:] = 0
        for sign in (1, -1):
            sent = (moving * sign).clamp(min=0)
            amount = sent.sum(1)
            if not bool((amount > 0).any()):
                continue
            shares, known = _shares(explain(sent / _or_one(amount).unsqueeze(1)), of_tokens)
            amount = amount.where(known, 0.0) * sign
            for tensor, share in zip(found, shares, strict=True):
                tensor += share * _along(amount, share)
            staying += sent.where(~known.unsqueeze(1), 0.0) * sign
        moving = found[place][:, start:].clone()
    found[place][:, start:] = moving + staying
    return [tensor.to(map_.dtype) for tensor, map_ in zip(found, maps, strict=True)]


def _shares(maps: Sequence[Tensor], of_tokens: Sequence[bool]) -> tuple[list[Tensor], Tensor]:
    """Returns each entry's share of the support for a score, and which samples have support.

    Each token of token ids counts by itself if its relevance is positive. Other inputs, such as
    pixels, count as a whole, since the relevance of their single values largely cancels out.
    """
    parts, sums = [], []
    for tensor, ids in zip(maps, of_tokens, strict=True):
        found = _precise(tensor).clamp(min=0) if ids else _precise(tensor)
        total = found.flatten(1).sum(1)
        parts.append(found.where(_along(total > 0, found), 0.0))
        sums.append(total.clamp(min=0))
    whole = torch.stack(sums).sum(0)
    return [part / _along(_or_one(whole), part) for part in parts], whole > 0


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _or_one(tensor: Tensor) -> Tensor:
    return tensor.where(tensor > 0, 1.0)


def _along(of_samples: Tensor, like: Tensor) -> Tensor:
    return of_samples.reshape(-1, *[1] * (like.ndim - 1))
