"""The output of a model that is explained: Captum's targets, and contrasts of two targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral
from typing import Any, TypeAlias

import torch
from captum._utils.common import _select_targets
from captum._utils.typing import TargetType
from torch import Tensor

from captum_transformer.errors import AmbiguousOutputError, ExplanationError, InvalidTargetError


@dataclass(frozen=True)
class Contrast:
    """A target that is the difference of two scores: why one output rather than another.

    Wherever a target is accepted, a contrast may be passed instead, or a list with one for each
    sample (Captum's tools that repeat samples, such as ``NoiseTunnel``, also repeat the list).

    Gradients are those of the difference. Relevance that is propagated by rules is the relevance of
    one score minus the relevance of the other.

    Attributes:
        target: the output that is explained, in any of Captum's forms.
        rather_than: the output that it is compared with, in any of Captum's forms.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import ConservativeLRP
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
        >>> cat_not_dog = Contrast(3, rather_than=5)
        >>> ConservativeLRP(model).attribute(torch.rand(2, 3, 32, 32), cat_not_dog).shape
        torch.Size([2, 3, 32, 32])
    """

    target: TargetType
    rather_than: TargetType


@dataclass(frozen=True, eq=False)
class Combination:
    """The weighted sum of all scores of a model's output.

    Gradients are those of the sum. Relevance that is propagated by rules is that of the scores with
    positive weights minus that of the others; a token flow starts at each score with its share.

    Attributes:
        weights: ``(samples, scores)``.
        shares: how much the token that a score is read from counts, ``(samples, scores)``: the
            weight's size, divided among scores that are compared with each other.
        signed: whether some weights may be negative.
    """

    weights: Tensor
    shares: Tensor
    signed: bool = False


@dataclass(frozen=True, eq=False)
class Chosen:
    """One score of each sample, given by a tensor: the target of a captured call.

    Attributes:
        indices: the score's indices in the dimensions after the samples, ``(samples, dimensions)``.
        note: is called with the sizes of these dimensions whenever a score is selected.
    """

    indices: Tensor
    note: Callable[[tuple[int, ...]], None]


Target: TypeAlias = TargetType | Contrast | list[Contrast]


def as_contrast(target: Any) -> Contrast | None:
    """Returns a target as a contrast, or None; a list of contrasts becomes one with lists."""
    if isinstance(target, list) and target and all(isinstance(t, Contrast) for t in target):
        return Contrast([t.target for t in target], [t.rather_than for t in target])
    return target if isinstance(target, Contrast) else None


def target_of(target: Any, rows: slice, samples: int) -> Any:
    """Returns the target of some samples: rows of a target that has one for each sample."""
    if isinstance(target, Contrast):
        sides = (target_of(t, rows, samples) for t in (target.target, target.rather_than))
        return Contrast(*sides)
    if isinstance(target, Chosen):
        return Chosen(target.indices[rows], target.note)
    if isinstance(target, Tensor):
        return target[rows] if target.numel() == samples > 1 else target
    return target[rows] if isinstance(target, list) and len(target) == samples else target


def is_of_integers(tensor: Tensor) -> bool:
    """Returns whether a tensor holds integers of any size, which may be indices."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def main_output(output: Any) -> Any:
    """Returns an output's logits if it has any, otherwise the output, a dataclass as a dict."""
    if is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    logits = output.get("logits") if isinstance(output, Mapping) else None
    return logits if isinstance(logits, Tensor) else output


def selected_scores(output: Any, target: Any, samples: int) -> Tensor:
    """Returns the score that a target selects for each sample: ``(samples,)``.

    Raises:
        InvalidTargetError: if the target does not fit the output.
        AmbiguousOutputError: if the output has no tensor or several that it fits.
    """
    scores = _select(output, target)
    if len(scores) != samples:
        raise InvalidTargetError(
            f"target {_short(target)} selects {len(scores)} scores, but there are {samples} "
            "samples: one score per sample is explained. The model's output must have the samples "
            "along dimension 0."
        )
    return scores


def _select(output: Any, target: Any) -> Tensor:
    if isinstance(output, Tensor):
        return _select_from(output, target)
    candidates = tensors_of_scores(output)
    if isinstance(target, Chosen):
        # By shape, for its numbers are others in each call.
        dims = target.indices.shape[1]
        likely = [c for c in candidates if dims < c[1].ndim and not c[1].shape[dims + 1 :]]
        candidates = likely if len(likely) == 1 else candidates
        if len(likely) > 1:
            raise AmbiguousOutputError(
                f"The model returned {', '.join(name for name, _ in likely)}: which of them a "
                "target is for depends on its numbers, so the call can't be captured. Pass a "
                "function that returns the tensor to explain, for instance "
                "`lambda x: model(x).logits`."
            )
    fits, error = [], None
    for name, tensor in candidates:
        try:
            fits.append((name, _select_from(tensor, target)))
        except InvalidTargetError as reason:
            error = reason
    if len(fits) == 1:
        return fits[0][1]
    if not fits and error is not None:
        raise error
    found = ", ".join(f"{name}: {tuple(t.shape)}" for name, t in candidates)
    raise AmbiguousOutputError(
        (
            f"The model returned {found}; target {target!r} fits {len(fits)} of them and exactly "
            "one is needed. "
            if candidates
            else f"The model returned {type(output).__name__}, in which there is no tensor of "
            "scores. "
        )
        + "Pass a function that returns the tensor to explain, for instance "
        "`lambda x: model(x).logits`."
    )


def tensors_of_scores(output: Any) -> list[tuple[str, Tensor]]:
    """Returns the tensors in an output that a target may refer to, by their name or place."""
    if isinstance(output, Mapping):
        items: list[tuple[str, Any]] = list(output.items())
    elif isinstance(output, (tuple, list)):
        items = [(f"[{i}]", item) for i, item in enumerate(output)]
    else:
        items = []
    return [(k, v) for k, v in items if isinstance(v, Tensor) and v.is_floating_point() and v.ndim]


def _select_from(output: Tensor, target: Any) -> Tensor:
    if isinstance(target, Tensor):
        target = target.to(output.device, torch.long if is_of_integers(target) else target.dtype)
    try:
        if isinstance(target, Chosen):
            selected = _chosen_from(output, target)
        else:
            selected = _select_targets(output, _of_python(target))
    except ExplanationError:
        raise
    except (AssertionError, IndexError, RuntimeError, TypeError) as reason:
        raise InvalidTargetError(
            f"target {_short(target)} does not fit the model's output of shape "
            f"{tuple(output.shape)}: {str(reason).rstrip('.')}. " + _form_of_targets(output.ndim)
        ) from reason
    if selected.ndim > 1 and selected[0].numel() > 1:
        raise InvalidTargetError(
            f"target {_short(target)} leaves {tuple(selected.shape[1:])} values per sample of the "
            f"output of shape {tuple(output.shape)}; one is explained at a time. "
            + ("Give a target." if target is None else "Give a tuple of indices.")
        )
    return selected.reshape(-1)


def _chosen_from(output: Tensor, chosen: Chosen) -> Tensor:
    dims = chosen.indices.shape[1]
    sizes = tuple(output.shape[1 : dims + 1])
    chosen.note(sizes)
    if len(sizes) < dims:
        raise IndexError(f"{dims} indices are given")
    indices = chosen.indices.to(output.device)
    lengths = torch.tensor(sizes, device=output.device)
    indices = torch.where(indices < 0, indices + lengths, indices)
    indices = torch.where(indices < 0, lengths, indices)  # outside, and not counted from the end
    if output.ndim == 2:
        return output.gather(1, indices).squeeze(-1)
    samples = torch.arange(len(output), device=output.device)
    places = (samples, *indices.unbind(1))
    return output[places]


def _form_of_targets(ndim: int) -> str:
    if ndim < 2:
        return (
            "The model's output must have the samples along dimension 0, also where there is one, "
            "and the classes behind it. If it is one score per sample, give no target."
        )
    return (
        "Give one class index for all samples, a tensor or list with one per sample, or tuples of "
        "indices for outputs of more dimensions."
    )


def _of_python(target: Any) -> Any:
    """Returns a target with Python's integers in place of NumPy's."""
    if isinstance(target, (list, tuple)):
        return type(target)(map(_of_python, target))
    return int(target) if isinstance(target, Integral) else target


def _short(target: Any) -> str:
    if isinstance(target, Tensor) and target.numel() > 8:
        return f"of shape {tuple(target.shape)}"
    text = repr(target)
    return text if len(text) < 80 else text[:77] + "..."
