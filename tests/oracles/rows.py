"""Maps and their gradients by plain PyTorch, and the product of explicit matrices along a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_transformer import AttentionRollout, GenericAttentionRelevance

EXACT = {"rtol": 1e-10, "atol": 1e-13}


@contextmanager
def written_out(model: nn.Module) -> Iterator[None]:
    """Attention as matrix products with a softmax, and not fused."""
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    config = getattr(model, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    try:
        for module in fused:
            module.fused_attn = False
        if implementation is not None:
            config._attn_implementation = "eager"
        yield
    finally:
        for module in fused:
            module.fused_attn = True
        if implementation is not None:
            config._attn_implementation = implementation


def mean_over(grid: tuple[int, int]) -> Tensor:
    """A score that is read from the mean of all tokens."""
    tokens = grid[0] * grid[1]
    return torch.full((tokens,), 1 / tokens, dtype=torch.float64)


_POOLED_DIMS = {"mean": lambda _, dim, **__: dim, "adaptive_avg_pool2d": lambda *_: (2, 3)}


class Softmaxes(TorchFunctionMode):
    """Keeps what the softmaxes of a model give, in its precision, and what it pools at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.pooled: tuple[Tensor, Any] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in _POOLED_DIMS:
            self.pooled = args[0], _POOLED_DIMS[name](*args, **(kwargs or {}))
        if name != "softmax":
            return func(*args, **(kwargs or {}))
        # Written-out attention in Transformers asks for single precision.
        result = args[0].softmax(kwargs.get("dim", -1))
        if result.ndim > 2:  # unlike that of a router of experts
            self.maps.append(result)
        return result


@dataclass(frozen=True)
class Layer:
    """What an attention call makes of the tokens.

    Attributes:
        place: from its maps, averaged over heads, to ``(samples, tokens, earlier tokens)``, and
            behind these what is attended to but is none of them.
        skip: what is added to it: the part of each earlier token in each token.
        heads: which axis of the maps are the heads.
        calls: how many attend side by side.
    """

    place: Callable[[Tensor], Tensor]
    skip: Tensor
    heads: int = 1
    calls: int = 1


@dataclass(frozen=True)
class Oracle:
    """A model with the matrices that its tokens go through.

    Attributes:
        model: a classifier in float64.
        inputs: of one call.
        path: from the first to the last, an attention layer or a matrix ``(tokens, earlier)``.
        read: what part of the score is read from each token at the end, the same for all samples or
            for each.
        prefix: how many of the first tokens are no input.
        stem: what part of each token each pixel is, for images.
        named: further arguments.
        score: reads the classes' scores off the output.
        record: the maps of a call and its output; the softmaxes if there is none.
    """

    model: nn.Module
    inputs: Tensor
    path: Sequence[Layer | Tensor]
    read: Tensor
    prefix: int = 0
    stem: Tensor | None = None
    named: Mapping[str, Any] = field(default_factory=dict)
    score: Callable[[Any], Tensor] = lambda output: output
    record: Callable[[], tuple[list[Tensor], Tensor]] | None = None

    def maps(self, target: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """The probabilities of each attention call, and the gradient of the score there."""
        if self.record is not None:
            maps, output = self.record()
        else:
            with written_out(self.model), Softmaxes() as softmaxes:
                output = self.score(self.model(self.inputs, **self.named))
            maps = softmaxes.maps
        chosen = output[torch.arange(len(output)), torch.tensor(target)]
        gradients = torch.autograd.grad(chosen.sum(), maps)
        return [m.detach() for m in maps], list(gradients)

    def said(self, target: Sequence[int]) -> Tensor:
        """Value times gradient of each token that is read, less the mean over all of them."""
        with written_out(self.model), Softmaxes() as seen:
            output = self.score(self.model(self.inputs, **self.named))
        assert seen.pooled is not None
        tokens, dims = seen.pooled
        chosen = output[torch.arange(len(output)), torch.tensor(target)]
        (gradient,) = torch.autograd.grad(chosen.sum(), tokens)
        pooled = [dims] if isinstance(dims, int) else [dim % tokens.ndim for dim in dims]
        features = [dim for dim in range(1, tokens.ndim) if dim not in pooled]
        each = (tokens * gradient).detach().sum(features).flatten(1)
        found = torch.zeros(len(each), len(self.read), dtype=each.dtype)
        found[:, self.read != 0] = each - each.mean(1, keepdim=True)
        return found

    def rows(self, maps: Sequence[Tensor], *, normalize: bool) -> tuple[Tensor, Tensor]:
        """The row of the layers' product that the score is read from.

        Returns:
            What passes attention, and what passes none.
        """
        direct = torch.eye(self._first(), dtype=torch.float64)
        passed = torch.zeros_like(direct)
        remaining = iter(maps)
        for step in self.path:
            if not isinstance(step, Layer):
                passed, direct = step @ passed, step @ direct
                continue
            averaged = [next(remaining).mean(step.heads) for _ in range(step.calls)]
            attention = sum(step.place(each) for each in averaged)
            total = 1 + attention.sum(-1, keepdim=True) * normalize
            attention = attention[..., : step.skip.shape[-1]]
            passed = (attention @ (passed + direct) + step.skip @ passed) / total
            direct = step.skip @ direct / total
        assert next(remaining, None) is None, "a map that no layer has asked for"
        read = self.read.unsqueeze(-2)
        of_inputs = [(read @ part).squeeze(-2)[..., self.prefix :] for part in (passed, direct)]
        return of_inputs[0], of_inputs[1]

    def _first(self) -> int:
        step = self.path[0]
        return (step.skip if isinstance(step, Layer) else step).shape[-1]

    def check(self, targets: Sequence[Sequence[int]] = ([1, 4], [3, 0])) -> None:
        """Holds the library's maps against the rows of the matrices."""

        def scored(*args, **kwargs):
            return self.score(self.model(*args, **kwargs))

        for number, target in enumerate(targets):
            maps, gradients = self.maps(target)
            weighted = [(a * g).relu() for a, g in zip(maps, gradients, strict=True)]
            passed, direct = self.rows(weighted, normalize=False)
            # The maps have to matter, or the skips alone would be compared.
            assert passed.amax() > 1e-3 * direct.amax()
            method = partial(GenericAttentionRelevance, pooled_evidence=False)
            self._compare(method, scored, target, passed, direct, pixels=number == 0)
            one = bool(((self.read != 0).sum(-1) == 1).all())
            if one or not self.read[self.prefix :].any():  # of learned tokens, each by itself
                evidence = 0
            else:
                said = self.said(target)
                _, evidence = replace(self, read=said).rows(weighted, normalize=False)
                evidence = evidence / said.clamp_min(0).sum(1, keepdim=True)
                evidence = evidence * passed.sum(1, keepdim=True)
            self._compare_rows(GenericAttentionRelevance(scored), target, passed + evidence)
        for normalize in (True, False):
            rows = self.rows(maps, normalize=normalize)
            method = partial(AttentionRollout, normalize_rows=normalize)
            self._compare(method, scored, targets[-1], *rows, pixels=normalize)

    def _compare(self, method, scored, target, passed, direct, *, pixels):
        self._compare_rows(method(scored), target, passed, pixels=pixels)
        with_identity = method(scored, with_identity=True)
        self._compare_rows(with_identity, target, passed + direct, pixels=pixels)

    def _compare_rows(self, method, target, expected, *, pixels=False):
        """With the tokens, and with the pixels to which the stem spreads these in the same way."""
        call = (self.inputs, list(target))
        tokens = method.attribute_tokens(*call, additional_forward_kwargs=dict(self.named))
        torch.testing.assert_close(tokens, expected.expand_as(tokens), **EXACT)
        if pixels and self.stem is not None:
            found = method.attribute(*call, additional_forward_kwargs=dict(self.named))
            spread = (expected @ self.stem)[:, None] / self.inputs.shape[1]
            shares = spread.expand(len(found), self.inputs.shape[1], -1)
            torch.testing.assert_close(found.flatten(2), shares, **EXACT)
