"""Arguments that go with the ids of a finished text: extended, or refused if they don't fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer.errors import InvalidInputError

# The argument of Transformers models that says which tokens are not padding.
_MASK = "additional_forward_kwargs['attention_mask']"

# Arguments that `generate` extends by repeating the entry of the last token.
_OF_TOKENS = ("attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")


def refuse_unfitting(further: Mapping[str, Any], prompt: int, whole: tuple[int, int]) -> None:
    """Raises an error if an argument only covers the prompt, or hides explained tokens.

    Args:
        further: the further arguments of the model, by the user's names for them.
        prompt: the number of tokens of the prompt.
        whole: the numbers of samples, and of tokens of prompt and generated text together.

    Raises:
        InvalidInputError: if there is such an argument, or a cache with earlier tokens.
    """
    refuse_caches(further)
    samples, length = whole
    for name, argument in further.items():
        if isinstance(argument, Tensor) and argument.shape == (samples, prompt):
            raise InvalidInputError(
                f"{name} is as long as the prompt, {(samples, prompt)}, but the model runs over "
                f"prompt and generated tokens, {whole}. Extend it; a mask, for instance, by "
                f"`torch.nn.functional.pad(mask, (0, {length - prompt}), value=1)`."
            )
    mask = further.get(_MASK)
    if isinstance(mask, Tensor) and mask.shape == whole:
        _refuse_mask(mask, prompt)


def continued(name: str, value: Any, prompt: torch.Size, grown: int) -> Any:
    """Extends an argument to the tokens of an answer in the same way as `generate`."""
    if not isinstance(value, Tensor) or prompt[1] not in value.shape:
        return value
    if name == "position_ids":
        steps = torch.arange(1, grown + 1, device=value.device, dtype=value.dtype)
        return torch.cat([value, value[..., -1:] + steps], -1)
    if name not in _OF_TOKENS or value.shape[:2] != prompt:
        return value
    if name == "attention_mask" and not bool(value.all()):
        raise InvalidInputError(
            "The prompt is padded, which a single conversation doesn't need, and positions would "
            "not be what they were in `generate`. Process it alone, without padding, and generate "
            "again."
        )
    return torch.cat([value, value[:, -1:].expand(-1, grown, *value.shape[2:])], 1)


def refuse_caches(further: Mapping[str, Any]) -> None:
    """Raises an error if an argument is a cache that holds keys and values of earlier tokens.

    Raises:
        InvalidInputError: if there is such a cache.
    """
    for name, argument in further.items():
        length = getattr(argument, "get_seq_length", None)
        cached = int(length()) if callable(length) else 0
        if cached:
            raise InvalidInputError(
                f"{name} is a cache with the keys and values of {cached} tokens. Cached tokens "
                f"would get no relevance, and would be processed twice: omit the cache, and pass "
                f"all ids."
            )


def require_same_logits(scores: Tensor, tokens: Tensor, logits: Sequence[Tensor]) -> None:
    """Raises an error if the logits of tokens differ from those when they were generated.

    Args:
        scores: the logits of the tokens now, ``(samples, tokens)``.
        tokens: the ids of the tokens.
        logits: all logits during generation, ``(samples, vocabulary)`` for each token.

    Raises:
        InvalidInputError: if they differ by more than rounding.
    """
    steps = zip(logits, tokens.unbind(1), strict=True)
    of_tokens = [step.to(ids.device).gather(1, ids.unsqueeze(1)) for step, ids in steps]
    known = torch.cat(of_tokens, 1).to(scores.device)
    # Logits that are not finite are not compared: their tokens were ruled out.
    off = (scores.to(known.dtype) - known).abs().where(known.isfinite(), 0.0).max()
    size = torch.stack([step.abs().where(step.isfinite(), 0.0).max() for step in logits]).max()
    rounding = max(torch.finfo(tensor.dtype).eps for tensor in (scores, known)) ** 0.5
    if bool(off > rounding * (1 + size.to(off.device))):
        raise InvalidInputError(
            "The model's logits of the generated tokens are not those that `generate` had: they "
            f"differ by up to {float(off):.3g}. It doesn't run as it did in `generate`. Usually "
            f"the mask, or `position_ids` of padded batches, are missing from the additional "
            f"arguments, or the model was in training mode."
        )


def _refuse_mask(mask: Tensor, prompt: int) -> None:
    there = mask != 0
    padded = (~there[:, prompt - 1]).nonzero().flatten().tolist()
    if padded:
        raise InvalidInputError(
            f"The mask hides the last token of the prompts of samples {padded}, which the first "
            "generated token is read from: they are padded on the right. Pad all prompts on the "
            "left (`tokenizer.padding_side = 'left'`), and generate again."
        )
    generated = there[:, prompt:].long()
    first = ~generated[:, 0].bool()
    again = (torch.diff(generated, dim=1) > 0).any(1)
    hidden = (first | again).nonzero().flatten().tolist()
    if hidden:
        raise InvalidInputError(
            f"The mask hides generated tokens of samples {hidden} that others come after. Extend "
            f"it with ones for the generated tokens; zeros are only allowed after the end of a "
            f"text."
        )
