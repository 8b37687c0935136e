"""Tokens taken out of the sequence in the order of their relevance: Chefer et al., ICCV 2021."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from captum._utils.typing import TargetType
from torch import Tensor

from captum_transformer.errors import AmbiguousOutputError, InvalidInputError
from captum_transformer.metrics.curve import Curve
from captum_transformer.metrics.places import (
    Order,
    counts,
    keep_mask,
    place_relevance,
    rank_places,
)
from captum_transformer.metrics.variations import (
    Variations,
    check_perturbations_per_eval,
    read_curve,
)

REMOVAL_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""The steps of the authors' code."""


def token_removal(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    additional_forward_kwargs: Mapping[str, Any] | None = None,
    keep: Tensor | None = None,
    order: Order = "positive",
    fractions: Sequence[float] = REMOVAL_FRACTIONS,
    softmax: bool = True,
    perturbations_per_eval: int = 1,
    show_progress: bool = False,
) -> Curve:
    r"""Positive and negative perturbation of tokens, after section 4 of the ICCV 2021 paper.

    Tokens are *removed*: the sequence gets shorter, nothing is masked. The remaining ones stay in
    their order. *Positive*: the most relevant are removed first, and a small area is good;
    *negative*: the least relevant are removed first, and a large area is good.

    **Everything that has one entry per token is one of the** ``inputs``: ids, attention mask, token
    types, or the features and boxes of image regions. All of them are shortened along dimension 1.
    Pass tensors that are not shortened, such as the regions while words are removed, as further
    arguments.

    For a fraction *f* of *n* tokens that may be removed, ``ceil(f * n)`` are removed. The authors'
    code keeps ``floor((1 - f) * n)``, where rounding errors can remove one token too many. Samples
    with different *n* lose different numbers of tokens; samples of equal length go through the
    model together, so that nothing is padded and a batch gives exactly the results of its samples
    one by one. Ties are broken in reading order.

    Args:
        forward_func: The model, or any function that returns scores ``(B, classes)``, as in Captum.
        inputs: The inputs with one entry per token, ``(B, N, ...)`` each: a tensor or a tuple of
            tensors, passed by position, or a mapping of names to tensors, passed by name.
        attributions: Relevance ``(B, N)``, or, if the first input has features, ``(B, N, D)``,
            which is summed over them.
        target: The class whose score the curve shows, in any of Captum's forms.
        additional_forward_args: Further arguments by position, as in Captum.
        additional_forward_kwargs: Further arguments by name.
        keep: Tokens that always stay, booleans or zeros and ones ``(B, N)``: [CLS], [SEP] and
            padding, as in a tokenizer's ``special_tokens_mask``. None: any token may be removed,
            also padding.
        order: ``"positive"`` or ``"negative"``.
        fractions: The shares of tokens that are removed, increasing.
        softmax: Whether the curve shows probabilities instead of the scores as returned.
        perturbations_per_eval: At most this many times the number of samples go through the model
            together.
        show_progress: Whether to show a progress bar.

    Returns:
        The scores and the predictions at each fraction.

    Raises:
        InvalidInputError: If the shapes don't belong together, or the relevance isn't finite.
        AmbiguousOutputError: If the model doesn't return scores.

    References:
        `Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
        Transformers <https://arxiv.org/abs/2103.15679>`_.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from captum_transformer import GenericAttentionRelevance
        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
        ... )
        >>> model = BertForSequenceClassification(config).eval()
        >>> ids = torch.tensor([[2, 11, 12, 13, 14, 3], [2, 21, 22, 3, 0, 0]])
        >>> mask = (ids != 0).long()
        >>> relevance = GenericAttentionRelevance(model).attribute(
        ...     ids, target=1, additional_forward_kwargs={"attention_mask": mask}
        ... )
        >>> curve = token_removal(
        ...     model, {"input_ids": ids, "attention_mask": mask}, relevance, 1, keep=ids < 4
        ... )
        >>> curve.scores.shape, curve.area().shape
        (torch.Size([2, 9]), torch.Size([2]))
    """
    check_perturbations_per_eval(perturbations_per_eval)
    variations = Variations(
        forward_func, inputs, additional_forward_args, additional_forward_kwargs
    )
    tensors = variations.tensors
    shapes = [tuple(t.shape) for t in tensors]
    if any(t.ndim < 2 or t.shape[:2] != tensors[0].shape[:2] for t in tensors):
        raise InvalidInputError(
            f"Every one of the inputs must have one entry per token, (B, N, ...), got {shapes}. "
            "Pass all others as additional_forward_args or additional_forward_kwargs."
        )
    if tensors[0].ndim > 3:
        raise InvalidInputError(
            f"Tokens are ids (B, N) or features (B, N, D), got {shapes[0]}. For images there is "
            "pixel_perturbation."
        )
    relevance = place_relevance(attributions, tensors[0])
    kept = keep_mask(keep, relevance)
    rank = rank_places(relevance, order, kept)
    free = (torch.ones_like(rank) if kept is None else ~kept).sum(1)
    shares, gone = counts(fractions, free, "up")
    groups = _equally_long(rank.shape[1] - gone, perturbations_per_eval * len(rank))

    lengths = []

    def batches() -> Iterable[tuple[tuple[Tensor, ...], Tensor]]:
        for length, numbers in groups:
            lengths.append(length)
            rows = numbers % len(rank)
            # The last ranks stay; sorted, they are in reading order.
            places = rank[rows].argsort(1)[:, rank.shape[1] - length :].sort(1).values
            yield tuple(t[rows[:, None], places] for t in tensors), numbers

    description = f"token_removal, {order}"
    try:
        outputs = variations.run(
            batches(), total=len(groups), show_progress=show_progress, description=description
        )
    except AmbiguousOutputError:
        raise
    except Exception as error:
        if lengths[-1] == 0:
            raise InvalidInputError(
                f"The model has failed ({error}) where no token is left of a sample. Leave out the "
                "last fractions, or name tokens to keep."
            ) from error
        if whole := variations.further_with((len(rank), rank.shape[1])):
            raise InvalidInputError(
                f"The model has failed with fewer tokens ({error}). {', '.join(whole)} may have "
                "one entry per token: if so, give it with the inputs, so that it is shortened, too."
            ) from error
        raise
    return read_curve(shares, outputs, target, softmax=softmax)


def _equally_long(lengths: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """Groups variations of the same length; returns the length and the numbers of each group.

    Args:
        lengths: The length of each variation, ``(B, F)``.
        size: The size of the largest group.
    """
    numbered = lengths.t().flatten()
    by_length = [
        (length, (numbered == length).nonzero().flatten())
        for length in sorted(set(numbered.tolist()))
    ]
    return [(length, part) for length, numbers in by_length for part in numbers.split(size)]
