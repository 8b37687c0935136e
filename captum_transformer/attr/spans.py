"""Which of the generated tokens are explained together, and with which weights."""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from captum_transformer.errors import InvalidInputError

Spans: TypeAlias = Sequence[tuple[int, int] | slice] | Tensor

_FORMS = (
    "`spans` are a list of (start, end) or slices, which count the {unit} from 0 and leave the end "
    "out, or weights (spans, {unit}) or (samples, spans, {unit})"
)


def weights_of(
    spans: Any, samples: int, tokens: int, before: int, unit: str = "generated tokens"
) -> Tensor:
    """Returns the weight of each generated token in each span: ``(samples, spans, tokens)``.

    Args:
        spans: the spans as given by the user.
        samples: the number of samples.
        tokens: the number of generated tokens.
        before: the number of tokens in the sequence before them.
        unit: the name of what spans count, for error messages.

    Raises:
        InvalidInputError: if spans are invalid, or not within the generated tokens.
    """
    if isinstance(spans, Tensor):
        return _checked(spans, samples, tokens, unit)
    forms = _FORMS.format(unit=unit)
    if isinstance(spans, slice) or not isinstance(spans, Sequence) or isinstance(spans, str):
        raise InvalidInputError(f"{forms}; got a {type(spans).__name__}.")
    if not spans:
        raise InvalidInputError("`spans` is empty: leave it out to explain each by itself.")
    weights = torch.zeros(len(spans), tokens)
    for number, span in enumerate(spans):
        start, end = _ends(span, number, tokens, forms)
        if not 0 <= start < end <= tokens:
            shifted = before > 0 and 0 <= start - before < end - before <= tokens
            raise InvalidInputError(
                f"spans[{number}], {span!r}, is empty or not within the {tokens} {unit}, which "
                f"are counted from 0, after the prompt; the end is excluded."
                + (
                    f" Counted from the start of the sequence? Then it is "
                    f"({start - before}, {end - before})."
                    if shifted
                    else ""
                )
            )
        weights[number, start:end] = 1
    return weights.expand(samples, -1, -1)


def _ends(span: Any, number: int, tokens: int, forms: str) -> tuple[int, int]:
    pair = isinstance(span, (tuple, list)) and len(span) == 2
    ends = (span.start, span.stop) if isinstance(span, slice) and span.step in (None, 1) else span
    if not pair and ends is span:
        raise InvalidInputError(f"{forms}; spans[{number}] is {span!r}.")
    try:
        start, end = (None if each is None and not pair else operator.index(each) for each in ends)
    except TypeError:
        raise InvalidInputError(f"{forms}; spans[{number}] is {span!r}.") from None
    start, end = start or 0, tokens if end is None else end
    if pair:
        return start, end
    # Python clips slices that go beyond the end; here they are refused.
    return (start + tokens if start < 0 else start), (end + tokens if end < 0 else end)


def _checked(weights: Tensor, samples: int, tokens: int, unit: str) -> Tensor:
    found = weights.detach()
    if found.ndim == 1:
        found = found.unsqueeze(0)
    if found.ndim == 2:
        found = found.expand(samples, -1, -1)
    if found.ndim != 3 or (len(found), found.shape[2]) != (samples, tokens) or not found.shape[1]:
        raise InvalidInputError(
            f"{_FORMS.format(unit=unit)}; there are {samples} samples and {tokens} {unit}, and the "
            f"weights have the shape {tuple(weights.shape)}."
        )
    if found.is_complex() or not bool(found.isfinite().all()):
        raise InvalidInputError("The weights of `spans` must be finite real numbers.")
    found = found if found.is_floating_point() else found.float()
    if bool((found == 0).all(2).all(0).any()):
        raise InvalidInputError(
            f"The weights of `spans` have a span that is zero for all {unit} of all samples."
        )
    return found
