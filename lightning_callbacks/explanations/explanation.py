"""Explains samples with one method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_transformer import Account, TransformerMethod
from captum_transformer.attr.accounting import AccountableMethod
from captum_transformer.calling.memory import is_out_of_memory
from captum_transformer.captured.call import Of
from captum_transformer.visualization import to_map
from lightning_callbacks.explanations.by_position import by_position
from lightning_callbacks.explanations.graphs import Graphs
from lightning_callbacks.samples.batch import Samples


@dataclass(frozen=True)
class Explanation:
    """The attribution of one class of one sample.

    Attributes:
        attributions: One float32 CPU tensor per input of the model, without batch dimension.
        delta: The absolute convergence delta, or None if the method has none.
    """

    attributions: tuple[Tensor, ...]
    delta: float | None = None

    def flat_map(self) -> Tensor:
        """Returns the map that is compared with other runs: a value per pixel or token."""
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
    graphs: Graphs | None = None,
) -> dict[tuple[int, int], Explanation]:
    """Explains classes of samples, at most as many samples at a time as there are.

    Args:
        method: A Captum method. A `TransformerMethod` runs the model once for all classes of a
            sample.
        samples: The samples, on the model's device.
        pairs: Sample numbers and class ids to explain. A pair that occurs twice, for example
            because the predicted class is the label, is explained once.
        single: The model's output has no dimension for classes.
        tokens: Explain the tokens that the inputs are converted to, which requires a
            `TransformerMethod`.
        internal_batch_size: How many to explain at a time, if not as many as there are samples.
        graphs: Captures calls that repeat, if given.

    Returns:
        An explanation for each pair.
    """
    explanations: dict[tuple[int, int], Explanation] = {}
    shares = isinstance(method, TransformerMethod) and not tokens
    together = shares and not method.has_convergence_delta()
    for part in _parts(samples, pairs, internal_batch_size, together=together):
        for classes, (attributions, deltas) in zip(
            part.classes,
            _attribute(method, part, single=single, tokens=tokens, graphs=graphs),
            strict=True,
        ):
            for number, pair in enumerate(zip(part.rows, classes, strict=True)):
                explanations[pair] = Explanation(
                    tuple(values[number] for values in attributions),
                    None if deltas is None else deltas[number],
                )
    return explanations


def explain_layers(
    method: TransformerMethod,
    layers: Sequence[tuple[str, int]],
    samples: Samples,
    pairs: Sequence[tuple[int, int]],
    *,
    single: bool = False,
    internal_batch_size: int | None = None,
) -> list[Tensor]:
    """Returns a method's attributions to the inputs of some layers, all in one explanation.

    Args:
        method: The method.
        layers: The names of the layers, each with the number of the call.
        samples: The samples, on the model's device.
        pairs: Sample numbers and class ids.
        single: The model's output has no dimension for classes.
        internal_batch_size: How many to explain at a time, if not as many as there are samples.

    Returns:
        For each layer all values of its first input, flat, float32 on the CPU.
    """
    values: list[list[Tensor]] = [[] for _ in layers]
    for part in _parts(samples, pairs, internal_batch_size):
        found = method.attribute_layers(
            _inputs_of(part.samples),
            layers,
            None if single else part.classes[0],
            part.samples.additional_forward_args or None,
            attribute_to_layer_input=True,
            additional_forward_kwargs=part.samples.additional_forward_kwargs or None,
        )
        for of_layer, relevance in zip(values, found, strict=True):
            of_layer.append(_as_tuple(relevance)[0].detach().float().cpu().flatten())
    return [torch.cat(of_layer) for of_layer in values]


class _Part(NamedTuple):
    """Samples that are explained together.

    Attributes:
        samples: The samples, which share no memory with others: Captum marks its inputs.
        rows: Their numbers.
        classes: The classes of all these samples, once for each explanation of a sample. They are
            lists, since a tensor with one entry is one class for all samples.
    """

    samples: Samples
    rows: list[int]
    classes: list[list[int]]


def _parts(
    samples: Samples,
    pairs: Sequence[tuple[int, int]],
    size: int | None,
    *,
    together: bool = False,
) -> Iterator[_Part]:
    """Yields all different pairs in parts; `together` keeps the classes of a sample in one."""
    size = min(len(samples), size or len(samples))
    unique = list(dict.fromkeys(pairs))
    if not together:
        for start in range(0, len(unique), size):
            rows, classes = map(list, zip(*unique[start : start + size], strict=True))
            yield _Part(samples.select(rows), rows, [classes])
        return
    of_rows: dict[int, list[int]] = {}
    for row, class_id in unique:
        of_rows.setdefault(row, []).append(class_id)
    for count in sorted({len(classes) for classes in of_rows.values()}):
        alike = [row for row, classes in of_rows.items() if len(classes) == count]
        for start in range(0, len(alike), size):
            rows = alike[start : start + size]
            classes_of = zip(*(of_rows[row] for row in rows), strict=True)
            yield _Part(samples.select(rows), rows, [list(classes) for classes in classes_of])


def _inputs_of(samples: Samples) -> Any:
    several = len(samples.inputs) > 1
    return samples.named_inputs or (samples.inputs if several else samples.inputs[0])


def _attribute(
    method: Attribution, part: _Part, *, single: bool, tokens: bool, graphs: Graphs | None
) -> list[tuple[tuple[Tensor, ...], list[float] | None]]:
    """Returns the attributions and the deltas of a part, for each of its classes."""
    samples, several = part.samples, len(part.classes) > 1
    target: Any = None if single else part.classes[0]
    of: Of = "attribute_tokens" if tokens else "attribute"
    if several:
        of, target = "attribute_targets", part.classes
    has_delta = method.has_convergence_delta() and not tokens
    delta_too = {"return_convergence_delta": True} if has_delta else {}
    attribute: Callable[..., Any] = partial(getattr(method, of), **delta_too)
    options: dict[str, Any] = {"targets" if several else "target": target}
    if isinstance(method, TransformerMethod):
        if graphs is not None:
            attribute = graphs.of(method, of, delta_too)
            options = {"target": target}
        options["additional_forward_kwargs"] = samples.additional_forward_kwargs or None
    else:
        samples = by_position(samples, method.forward_func)
        if target is not None:
            options["target"] = torch.tensor(target, device=samples.inputs[0].device)
    options["additional_forward_args"] = samples.additional_forward_args or None
    try:
        results = attribute(_inputs_of(samples), **options)
    except RuntimeError as error:
        # Captum's methods differ in how they treat this.
        whole = [values.dtype for values in samples.inputs if not values.dtype.is_floating_point]
        if isinstance(method, TransformerMethod) or not whole or is_out_of_memory(error):
            raise
        raise ValueError(
            f"{error}. The inputs are {whole[0]}, and whole numbers have no gradients, which "
            f"{type(method).__name__} may need. Let batch_to_inputs= return real ones, such as "
            "images.float(), or take a method of captum_transformer for token ids."
        ) from error
    found = []
    for result in results if several else [results]:
        maps, delta = result if has_delta else (result, None)
        attributions = tuple(values.detach().float().cpu() for values in _as_tuple(maps))
        # Stochastic methods give several deltas per sample.
        deltas = (
            None
            if delta is None
            else delta.detach().float().reshape(len(samples), -1).abs().mean(1).tolist()
        )
        found.append((attributions, deltas))
    return found


def accounts(
    method: Attribution,
    samples: Samples,
    pairs: Sequence[tuple[int, int]],
    *,
    single: bool = False,
    internal_batch_size: int | None = None,
) -> list[Account]:
    """Returns the accounts of relevance for classes of samples, if the method has accounts.

    Args:
        method: A Captum method.
        samples: The samples, on the model's device.
        pairs: Sample numbers and class ids.
        single: The model's output has no dimension for classes.
        internal_batch_size: How many to explain at a time, if not as many as there are samples.

    Returns:
        An account for each batch; empty for methods without accounts.
    """
    if not isinstance(method, AccountableMethod):
        return []
    return [
        method.account(
            _inputs_of(part.samples),
            None if single else part.classes[0],
            part.samples.additional_forward_args or None,
            additional_forward_kwargs=part.samples.additional_forward_kwargs or None,
        )
        for part in _parts(samples, pairs, internal_batch_size)
    ]


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    if isinstance(result, Mapping):
        return tuple(result.values())
    return result if isinstance(result, tuple) else (result,)
