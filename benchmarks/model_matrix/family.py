"""A model family, and one call of a small random model of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5
SAMPLES = 2


@dataclass(frozen=True)
class Case:
    """A model with the arguments of one call.

    Attributes:
        model: in float64 and evaluation mode, with random weights.
        inputs: what is explained: a tensor, or by name a mapping.
        targets: two different questions, each one index (or tuple) for each sample; a single None
            if the score is one number per sample.
        named: further arguments by name.
        score: what is read off the model's output, if it is not the output itself.
    """

    model: nn.Module
    inputs: Any
    targets: tuple[Any, ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    score: Callable[[Any], Tensor] | None = None

    @property
    def forward(self) -> Callable[..., Any]:
        """The model, or a function that runs it and reads the score."""
        if self.score is None:
            return self.model
        model, score = self.model, self.score

        def scored(*args: Any, **kwargs: Any) -> Tensor:
            return score(model(*args, **kwargs))

        return scored

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Case:
        """Changes every tensor argument."""
        return replace(self, inputs=_mapped(self.inputs, change), named=_mapped(self.named, change))

    def sample(self, index: int) -> Case:
        """The call with one of the samples."""
        targets = tuple(None if t is None else [t[index]] for t in self.targets)
        return replace(self.with_tensors(lambda t: t[index : index + 1]), targets=targets)

    def to(self, dtype: torch.dtype) -> Case:
        """Model and floating point arguments in another precision; the model is changed."""
        self.model.to(dtype)
        return self.with_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def attribute(self, method: Callable[..., Any], **options: Any) -> Any:
        """What a method says of the first of the targets."""
        return method(self.forward).attribute(
            self.inputs, self.targets[0], additional_forward_kwargs=self.named, **options
        )

    def attribute_targets(self, method: Callable[..., Any]) -> list[Any]:
        """What a method says of each of the targets, by one run of the model."""
        found: list[Any] = method(self.forward).attribute_targets(
            self.inputs, self.targets, additional_forward_kwargs=self.named
        )
        return found

    def attribute_tokens(self, method: Callable[..., Any]) -> Any:
        """The same for the tokens."""
        return method(self.forward).attribute_tokens(
            self.inputs, self.targets[0], additional_forward_kwargs=self.named
        )

    def plain(self) -> Any:
        """The model's output, as it computes it by itself."""
        with torch.no_grad():
            if isinstance(self.inputs, Mapping):
                return self.forward(**self.inputs, **self.named)
            return self.forward(self.inputs, **self.named)


def _mapped(argument: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(argument, Mapping):
        return {key: _mapped(part, change) for key, part in argument.items()}
    return change(argument) if isinstance(argument, Tensor) else argument


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        library: whose it is.
        name: its name in the table.
        build: makes the call; it gets the implementation of attention.
        attentions: the implementations to compare; the first one is explained.
        needs: the class that older versions of the library lack.
        not_conserved: why ConservativeLRP's theory gives no conservation here, if so.
        kind: the structure that it stands for in the cut that the tests run.
    """

    library: str
    name: str
    build: Callable[[str], Case]
    attentions: tuple[str, ...] = ("sdpa", "eager")
    needs: str | None = None
    not_conserved: str | None = None
    kind: str | None = None


def drawn(*size: int, seed: int = 0) -> Tensor:
    """Standard normal values, the same at each call."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(length: int = 7, *, vocabulary: int = 30, seed: int = 2) -> Tensor:
    """Token ids above those that stand for padding, beginnings and ends."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (SAMPLES, length), generator=generator)


def padding(length: int = 7) -> Tensor:
    """The mask of a short second text: one for tokens, zero for padding on the right."""
    lengths = torch.tensor([length, length - 2])
    return (torch.arange(length) < lengths[:, None]).long()


def with_random_weights(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Weights, biases and embeddings large enough for every part to matter; in float64."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.ndim == 0:
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1 and name.endswith("weight"):
            noise = 1 + 0.2 * noise
        elif parameter.ndim == 1:
            noise = 0.2 * noise
        else:
            noise = noise * gain * parameter[0].numel() ** -0.5
        parameter.data = noise
    return model.double().eval()
