"""Loss functions, which models may return as scores, written with functions of the table."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string


def _body(of: Callable[..., Any], losses: Callable[..., Any]) -> Callable[..., Tensor]:
    """Makes a loss function with torch's arguments and reductions from the losses of all entries.

    Args:
        of: torch's function.
        losses: returns the loss of each entry, or these and the weights whose sum a mean divides
            by instead of the number of entries.
    """
    signature = inspect.signature(of)

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        reduction = given.pop("reduction")
        # Deprecated arguments that `reduction` has replaced.
        before = given.pop("size_average", None), given.pop("reduce", None)
        if before != (None, None):
            reduction = legacy_get_string(*before, emit_warning=False)
        return _reduced(losses(**given), reduction, next(iter(given.values())))

    return loss


def _reduced(found: Any, reduction: str, first: Tensor) -> Tensor:
    each: Tensor
    each, weights = found if isinstance(found, tuple) else (found, None)
    if reduction == "none":
        return each
    if reduction == "mean":
        return each.mean() if weights is None else each.sum() / weights.sum()
    if reduction in ("sum", "batchmean"):
        return each.sum() / len(first) if reduction == "batchmean" else each.sum()
    raise ValueError(f"{reduction} is not a valid value for reduction")


def _weighted(each: Tensor, weight: Tensor | None) -> Any:
    return each if weight is None else each * weight


def _averaged(each: Tensor, weight: Tensor | None) -> Any:
    """Returns the losses for a mean that divides by the sum of the weights."""
    return each if weight is None else (each * weight, weight.expand_as(each))


def _rounded(input: Tensor, target: Tensor, beta: float) -> Tensor:  # noqa: A002
    far = (input - target).abs()
    near = far.square() / (2 * beta) if beta else far
    return torch.where(far < beta, near, far - beta / 2)


def _of_class(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    smoothing: float = 0.0,
) -> Any:
    """Returns the losses of log-probabilities; classes are in dimension 1, or 0 if unbatched."""
    dim = min(input.ndim - 1, 1)
    shape = [-1 if d == dim else 1 for d in range(input.ndim)]
    of_classes = torch.ones_like(input[:1]).flatten()[:1] if weight is None else weight
    of_classes = of_classes.expand(input.shape[dim])
    ignored = target == ignore_index
    ids = target.masked_fill(ignored, 0)
    with torch.no_grad():  # labels select entries; even if explained, this isn't an embedding
        weights = of_classes[ids].masked_fill(ignored, 0.0)
    each = -(input.gather(dim, ids.unsqueeze(dim)).squeeze(dim) * weights)
    if smoothing:
        even = -(input * of_classes.reshape(shape)).sum(dim).masked_fill(ignored, 0.0)
        each = (1 - smoothing) * each + smoothing / input.shape[dim] * even
    return each, weights


def _cross_entropy(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Any:
    dim = min(input.ndim - 1, 1)
    logarithms = input.log_softmax(dim)
    if target.shape != input.shape:
        return _of_class(logarithms, target, weight, ignore_index, label_smoothing)
    classes = input.shape[dim]
    target = target * (1 - label_smoothing) + label_smoothing / classes
    shape = [-1 if d == dim else 1 for d in range(input.ndim)]
    return -_weighted(logarithms * target, weight if weight is None else weight.reshape(shape)).sum(
        dim
    )


def _binary(input: Tensor, target: Tensor, weight: Tensor | None) -> Any:  # noqa: A002
    yes, no = input.log().clamp(min=-100), (1 - input).log().clamp(min=-100)
    return _weighted(-(target * yes + (1 - target) * no), weight)


def _binary_of_logits(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
) -> Any:
    yes = target if pos_weight is None else target * pos_weight
    return _weighted(-(yes * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input)), weight)


def _divergence(input: Tensor, target: Tensor, *, log_target: bool) -> Tensor:  # noqa: A002
    if log_target:
        return target.exp() * (target - input)
    certain = target == 0
    logarithms = target.masked_fill(certain, 1.0).log()
    return (target * (logarithms - input)).masked_fill(certain, 0.0)


def _of_cosine(input1: Tensor, input2: Tensor, target: Tensor, margin: float) -> Tensor:
    cosine = F.cosine_similarity(input1, input2, dim=-1)
    return torch.where(target > 0, 1 - cosine, (cosine - margin).clamp(min=0))


def _poisson(
    input: Tensor,  # noqa: A002
    target: Tensor,
    log_input: bool,
    full: bool,
    eps: float,
) -> Tensor:
    each = input.exp() - target * input if log_input else input - target * (input + eps).log()
    if not full:
        return each
    few = target <= 1  # Stirling's approximation is for larger numbers
    many = target.masked_fill(few, 1.0)
    return each + (many * many.log() - many + (2 * math.pi * many).log() / 2).masked_fill(few, 0.0)


def _gaussian(
    input: Tensor,  # noqa: A002
    target: Tensor,
    var: Tensor | float,
    full: bool,
    eps: float,
) -> Tensor:
    var = torch.full_like(input, var) if isinstance(var, float) else var
    if bool((var < 0).any()):
        raise ValueError("var has negative entry/entries")
    if var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    if var.ndim != input.ndim or any(
        n not in (1, m) for n, m in zip(var.shape, input.shape, strict=True)
    ):
        raise ValueError("var is of incorrect size")
    var = var + (var.clamp(min=eps) - var).detach()  # torch clamps it without a gradient
    each = (var.log() + (input - target).square() / var) / 2
    return each + math.log(2 * math.pi) / 2 if full else each


def _hinge(input: Tensor, target: Tensor, margin: float) -> Tensor:  # noqa: A002
    near = torch.where(target == -1, 0.0, input)
    return near + torch.where(target == 1, 0.0, (margin - input).clamp(min=0))


def _margins(
    input: Tensor,  # noqa: A002
    target: Tensor,
    p: int,
    margin: float,
    weight: Tensor | None,
) -> Tensor:
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    chosen = target.unsqueeze(-1)
    each: Tensor = (margin - input.gather(-1, chosen) + input).clamp(min=0)
    each = _weighted(each if p == 1 else each.square(), None if weight is None else weight[chosen])
    own = F.one_hot(target, input.shape[-1]).bool()
    return each.masked_fill(own, 0.0).sum(-1) / input.shape[-1]


def _triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float,
    p: float,
    eps: float,
    swap: bool,
) -> Tensor:
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    near = F.pairwise_distance(anchor, positive, p, eps)
    far = F.pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = torch.minimum(far, F.pairwise_distance(positive, negative, p, eps))
    return (margin + near - far).clamp(min=0)


def _huber(input: Tensor, target: Tensor, delta: float, weight: Tensor | None = None) -> Any:  # noqa: A002
    return _averaged(delta * _rounded(input, target, delta), weight)


_EACH: dict[Any, Callable[..., Any]] = {
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _of_class,
    F.mse_loss: lambda input, target, weight=None: _averaged((input - target).square(), weight),  # noqa: A006
    F.l1_loss: lambda input, target, weight=None: _averaged((input - target).abs(), weight),  # noqa: A006
    F.smooth_l1_loss: _rounded,
    F.huber_loss: _huber,
    F.binary_cross_entropy: _binary,
    F.binary_cross_entropy_with_logits: _binary_of_logits,
    F.kl_div: _divergence,
    F.cosine_embedding_loss: _of_cosine,
    F.margin_ranking_loss: lambda input1, input2, target, margin: (
        margin - target * (input1 - input2)
    ).clamp(min=0),
    F.soft_margin_loss: lambda input, target: F.softplus(-target * input),  # noqa: A006
    F.poisson_nll_loss: _poisson,
    F.gaussian_nll_loss: _gaussian,
    F.hinge_embedding_loss: _hinge,
    F.multi_margin_loss: _margins,
    F.triplet_margin_loss: _triplet,
}
LOSSES = {function: _body(function, each) for function, each in _EACH.items()}
