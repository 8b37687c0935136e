"""Checks that scores of generated tokens depend on the prompt, and on no later tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.errors import InvalidInputError


def require_prompt(slopes: Sequence[Tensor], length: int) -> None:
    """Raises an error if a score changes with some tokens, but with none of the prompt.

    Args:
        slopes: for each score, how much it changes with each token, ``(samples, tokens)``.
        length: the number of tokens of the prompt.

    Raises:
        InvalidInputError: if there is such a score.
    """
    size = torch.stack(list(slopes), 1)
    unseen = (size[..., :length].amax(2) == 0) & (size.amax(2) > 0)
    if bool(unseen.any()):
        sample, row = unseen.nonzero()[0].tolist()
        raise InvalidInputError(
            f"No token of the prompt reaches the score of generated token or span {row} of sample "
            f"{sample}: the prompt is outside of the model's sliding window, or a mask or cache "
            f"hides it. The score only depends on generated tokens: pass "
            "`include_generated=True`, and `hops=None` to follow it back to the prompt."
        )


def require_causal(slopes: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Raises an error if a score changes with later tokens.

    Args:
        slopes: for each score, how much it changes with each token, ``(samples, tokens)``.
        weights: the weight of each generated token in each score.

    Raises:
        InvalidInputError: if a score changes with later tokens.
    """
    _require_causal(torch.stack(list(slopes), 1), torch.stack(list(weights), 1))


def _require_causal(slopes: Tensor, weights: Tensor) -> None:
    counts = (weights != 0).long()
    later = counts.flip(2).cumsum(2).flip(2) - counts
    behind = F.pad(later == 0, (slopes.shape[2] - later.shape[2], 0), value=False)
    # The slope is exactly zero for masked tokens, but may be rounded if tokens are convolved.
    rounding = 64 * torch.finfo(slopes.dtype).eps
    if bool(((slopes * behind).amax(2) > rounding * slopes.amax(2)).any()):
        raise InvalidInputError(
            "The scores of generated tokens depend on later tokens, so they aren't the scores "
            "that the tokens were generated with. Does the model read in both directions, as a "
            "BERT "
            "does, or is what goes with the ids not extended as it was in `generate`: a mask, or "
            "ids that mark some of the tokens as a prefix? (What marks generated tokens is often "
            "another value than what marks the prompt.)"
        )
