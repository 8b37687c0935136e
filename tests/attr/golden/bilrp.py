"""BiLRP on sentence embeddings, the mean over a BERT's tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_transformer import BiLRP, ConservativeLRP, extend
from tests.attr.golden import models
from tests.attr.golden.cases import Case, Stored, loads
from tests.attr.golden.comparison import Golden

NAME = "bilrp_bert"
PLAIN = partial(ConservativeLRP, attention_rule=False, layer_norm_rule=False)
Entry = Callable[[Any, Tensor], tuple[Callable[..., Any], Tensor]]


# The slope of the built-in rule divides by x + 1e-10.
STABILISED = 5e-9


def secant(operation: extend.Operation) -> Tensor:
    """An activation as x times f(x) / x, of which the second is a constant."""
    ((signal, _),) = operation.traced()
    value = operation.run(lambda operand: operand.tensor).detach()
    return signal.tensor * extend.ratio(value, signal.tensor.detach(), 0.0)


def with_secants(function: Callable[..., Any]) -> extend.GradientMethod:
    return _with(function, {extend.Kind.ENTRYWISE: secant})


def with_identity_rule(function: Callable[..., Any]) -> extend.GradientMethod:
    return _with(function, extend.IDENTITY)


def _with(function: Callable[..., Any], rules: Any) -> extend.GradientMethod:
    return extend.GradientMethod(function, extend.joined(extend.AH, extend.LN, rules))


@loads(NAME, attentions=("sdpa", "eager"))
def sentences(stored: Stored, attention: str) -> Case:
    model = models.pretrained(stored, attention, **stored.manifest["init_kwargs"])
    given = stored.inputs
    ids, masks = (tuple(given[f"{key}_{side}"] for side in "ab") for key in ("ids", "mask"))
    return Case(model, ids, [None], stored.expected, masks)


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(2).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def at_ids(model: Any, ids: Tensor) -> tuple[Callable[..., Tensor], Tensor]:
    return lambda ids, mask: pooled(model(ids, attention_mask=mask)[0], mask), ids


def at_word_embeddings(model: Any, ids: Tensor) -> tuple[Callable[..., Tensor], Tensor]:
    def of_vectors(vectors: Tensor, mask: Tensor) -> Tensor:
        return pooled(model(inputs_embeds=vectors, attention_mask=mask)[0], mask)

    return of_vectors, model.get_input_embeddings()(ids).detach()


def at_embedding_output(model: Any, ids: Tensor) -> tuple[Callable[..., Tensor], Tensor]:
    def of_hidden(hidden: Tensor, mask: Tensor) -> Tensor:
        closed = (1 - mask[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        return pooled(model.encoder(hidden, attention_mask=closed)[0], mask)

    return of_hidden, model.embeddings(ids).detach()


@dataclass(frozen=True)
class Pairs:
    """One of the fields of what `BiLRP` says.

    Attributes:
        at: where the two inputs enter.
        options: what `BiLRP` is made with.
        read: the field.
    """

    at: Entry
    options: dict[str, Any] = field(default_factory=dict)
    read: str = "relevance"

    def __call__(self, case: Case) -> Tensor:
        entered = [self.at(case.model, ids) for ids in case.inputs]
        (function, _), _ = entered
        inputs = [tensor for _, tensor in entered]
        pairs = BiLRP(function, **self.options).explain(*inputs, *case.extra)
        return getattr(pairs, self.read)

    def __str__(self) -> str:
        return f"BiLRP, {self.at.__name__}, {self.read}"


@dataclass(frozen=True)
class Side:
    """The relevance of one side's tokens for each dimension: ``(samples, tokens, dimensions)``."""

    side: int

    def __call__(self, case: Case) -> Tensor:
        function, ids = at_ids(case.model, case.inputs[self.side])
        maps = ConservativeLRP(function).attribute_targets(
            ids, range(case.model.config.hidden_size), case.extra[self.side]
        )
        return torch.stack(maps, 2)

    def __str__(self) -> str:
        return "ConservativeLRP.attribute_targets"


def _embedding(side: int, case: Case) -> Tensor:
    function, ids = at_ids(case.model, case.inputs[side])
    return function(ids, case.extra[side]).detach()


def _golden() -> Iterator[Golden]:
    for side, name in enumerate("ab"):
        yield Golden(NAME, f"pooled_{name}", partial(_embedding, side))
        yield Golden(NAME, f"relevance_{name}", Side(side))
    yield Golden(NAME, "similarity", Pairs(at_ids, read="similarity"))
    for at in (at_ids, at_word_embeddings):
        yield Golden(NAME, "R", Pairs(at))
        yield Golden(NAME, "R", Pairs(at, {"rank": 24}))
        yield Golden(NAME, "R_plain_gradient", Pairs(at, {"method": PLAIN}))
        yield Golden(NAME, "R_identity_gelu", Pairs(at, {"method": with_secants}))
        built_in = Pairs(at, {"method": with_identity_rule})
        yield Golden(NAME, "R_identity_gelu", built_in, STABILISED)
    yield Golden(NAME, "R_embedding_output", Pairs(at_embedding_output))


GOLDEN = tuple(_golden())
