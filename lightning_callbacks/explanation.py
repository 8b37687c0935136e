"""Explains samples with one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_transformer import Account, TransformerMethod
from captum_transformer.attr.accounting import AccountableMethod
from captum_transformer.visualization import to_map
from lightning_callbacks.by_position import by_position
from lightning_callbacks.samples import Samples


@dataclass(frozen=True)
class Explanation:
    """The attribution of one class of one sample.

    Attributes:
        attributions: One float32 CPU tensor per input of the model, without batch dimension.
        delta: The absolute convergence delta, where the method has one.
    """

    attributions: tuple[Tensor, ...]
    delta: float | None = None

    def flat_map(self) -> Tensor:
        """What is compared with the maps of other times: a value per pixel or token."""
        return torch.cat([as_map(attribution).flatten() for attribution in self.attributions])


def as_map(attribution: Tensor) -> Tensor:
    """Reduces an attribution to one value per pixel, token or feature.

    Args:
        attribution: ``(C, H, W)`` of an image, ``(N, D)`` of embedded tokens, or ``(N,)``.

    Returns:
        The sum over the channels or the embedding's features.
    """
    if attribution.dim() == 3:
        return to_map(attribution)
    return attribution.sum(1) if attribution.dim() == 2 else attribution


def explain(
    method: Attribution,
    samples: Samples,
    pairs: Sequence[tuple[int, int]],
    *,
    single: bool = False,
    tokens: bool = False,
    internal_batch_size: int | None = None,
) -> dict[tuple[int, int], Explanation]:
    """Explains classes of samples, never more at a time than there are samples.

    Args:
        method: A Captum method.
        samples: The samples, on the model's device.
        pairs: What to explain: sample numbers and class ids. A pair that comes twice, as when the
            predicted class is the label, is explained once.
        single: The model's output has no dimension for classes.
        tokens: Explain the tokens that the inputs are turned into, which our methods can.
        internal_batch_size: How many to explain at a time, if not as many as there are samples.

    Returns:
        An explanation for each pair.
    """
    size = min(len(samples), internal_batch_size or len(samples))
    unique = list(dict.fromkeys(pairs))
    explanations: dict[tuple[int, int], Explanation] = {}
    for start in range(0, len(unique), size):
        part = unique[start : start + size]
        # Captum marks its inputs as requiring gradients: every call gets its own copy.
        chosen = samples.select([row for row, _ in part])
        attributions, deltas = _attribute(
            method, chosen, None if single else [class_id for _, class_id in part], tokens
        )
        for number, pair in enumerate(part):
            explanations[pair] = Explanation(
                tuple(values[number] for values in attributions),
                None if deltas is None else deltas[number],
            )
    return explanations


def _attribute(
    method: Attribution, samples: Samples, classes: list[int] | None, tokens: bool
) -> tuple[tuple[Tensor, ...], list[float] | None]:
    options: dict[str, Any] = {
        "target": None
        if classes is None
        else torch.tensor(classes, device=samples.inputs[0].device)
    }
    attribute = method.attribute
    if isinstance(method, TransformerMethod):
        attribute = method.attribute_tokens if tokens else attribute
        options["additional_forward_kwargs"] = samples.additional_forward_kwargs or None
    else:
        samples = by_position(samples, method.forward_func)
    options["additional_forward_args"] = samples.additional_forward_args or None
    several = len(samples.inputs) > 1
    inputs = samples.named_inputs or (samples.inputs if several else samples.inputs[0])
    has_delta = method.has_convergence_delta() and not tokens
    if has_delta:
        result, delta = attribute(inputs, **options, return_convergence_delta=True)
    else:
        result, delta = attribute(inputs, **options), None
    attributions = tuple(values.detach().float().cpu() for values in _as_tuple(result))
    # Stochastic methods give several deltas per sample.
    deltas = (
        None if delta is None else delta.detach().float().reshape(len(samples), -1).abs().mean(1)
    )
    return attributions, None if deltas is None else deltas.tolist()


def accounts(
    method: Attribution,
    samples: Samples,
    pairs: Sequence[tuple[int, int]],
    *,
    single: bool = False,
    internal_batch_size: int | None = None,
) -> list[Account]:
    """Where the relevance of classes of samples goes; none of methods that keep no account.

    Args:
        method: A Captum method.
        samples: The samples, on the model's device.
        pairs: Sample numbers and class ids.
        single: The model's output has no dimension for classes.
        internal_batch_size: How many to explain at a time, if not as many as there are samples.

    Returns:
        An account for each batch.
    """
    if not isinstance(method, AccountableMethod):
        return []
    size = min(len(samples), internal_batch_size or len(samples))
    unique = list(dict.fromkeys(pairs))
    found = []
    for start in range(0, len(unique), size):
        part = unique[start : start + size]
        chosen = samples.select([row for row, _ in part])
        classes = torch.tensor([class_id for _, class_id in part], device=chosen.inputs[0].device)
        inputs: Any = chosen.named_inputs or chosen.inputs
        found.append(
            method.account(
                inputs,
                None if single else classes,
                chosen.additional_forward_args or None,
                additional_forward_kwargs=chosen.additional_forward_kwargs or None,
            )
        )
    return found


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    if isinstance(result, Mapping):
        return tuple(result.values())
    return result if isinstance(result, tuple) else (result,)
