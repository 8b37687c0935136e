"""What computes an expected tensor: a call of a method, or something read off the forward pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_transformer import TransformerMethod
from captum_transformer.attr.attention_flow_method import gradient_map, output_gradients
from captum_transformer.attr.propagated import propagated_relevance
from captum_transformer.calling import Arguments
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.relevance.attention import attention_relevance
from captum_transformer.trace import TracedForward, traced_forward
from tests.attr.golden.cases import Case
from tests.attr.golden.models import from_embeddings

ALL = slice(None)


@dataclass(frozen=True)
class Call:
    """A method called on a case, once per target, on the whole batch.

    Attributes:
        method: its class.
        options: what it is made with.
        tokens: whether to call ``attribute_tokens``.
        of: enters the case at another point.
        reduce: from what the method returns (a tuple for a case with several inputs) to one tensor.
    """

    method: type[TransformerMethod]
    options: dict[str, Any] = field(default_factory=dict)
    tokens: bool = True
    of: Callable[[Case], Case] = lambda case: case
    reduce: Callable[[Any], Tensor] = lambda attribution: attribution

    def __call__(self, case: Case) -> Tensor:
        case = self.of(case)
        method = self.method(case.model, **self.options)
        attribute = method.attribute_tokens if self.tokens else method.attribute
        return case.per_target(
            lambda target: self.reduce(attribute(case.inputs, target, case.extra))
        )

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.method.__name__}({options})"


def last_sum(relevance: Tensor) -> Tensor:
    return relevance.sum(-1)


def entered_at_ids_and_embeddings(
    method: type[TransformerMethod], options: dict[str, Any]
) -> list[Call]:
    """The calls of a method that all give the relevance of a language model's tokens."""
    return [
        Call(method, options, tokens=False),
        Call(method, options),
        Call(method, options, tokens=False, of=from_embeddings, reduce=last_sum),
        Call(method, options, of=from_embeddings),
    ]


@dataclass(frozen=True)
class FirstTarget:
    """A call whose result is the same for all targets."""

    call: Call

    def __call__(self, case: Case) -> Tensor:
        first, *others = self.call(case).unbind(1)
        assert all(torch.equal(first, other) for other in others)
        return first

    def __str__(self) -> str:
        return str(self.call)


@dataclass(frozen=True)
class Traced:
    """Something read off the traced forward pass, stacked over the attention calls."""

    read: Callable[[TracedForward, Case], Tensor]

    def __call__(self, case: Case) -> Tensor:
        keep = flow.KEEP | relevance.TABLE.keep
        inputs = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
        with traced_forward(case.model, Arguments(inputs, case.extra), keep=keep) as forward:
            return self.read(forward, case)

    def __str__(self) -> str:
        return f"traced_forward, {self.read.__name__}"


def logits(forward: TracedForward, case: Case) -> Tensor:
    output = forward.output
    return (output if isinstance(output, Tensor) else output.logits).detach()


def probabilities(forward: TracedForward, case: Case) -> Tensor:
    return torch.stack([call.probabilities(ALL) for call in forward.calls], 1).detach()


def probability_gradients(forward: TracedForward, case: Case) -> Tensor:
    def read(target: Any) -> Tensor:
        selected, _ = forward.select(target)
        maps = gradient_map(output_gradients(forward, selected, forward.calls))
        return torch.stack([maps(call, ALL) for call in forward.calls], 1).detach()

    return case.per_target(read)


def probability_relevance(forward: TracedForward, case: Case) -> Tensor:
    def read(target: Any) -> Tensor:
        points = [call.output for call in forward.calls]
        reached = propagated_relevance(forward, *forward.select(target), points)
        maps = [attention_relevance(call, reached[call.output], ALL) for call in forward.calls]
        return torch.stack(maps, 1).detach()

    return case.per_target(read)
