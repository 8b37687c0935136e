"""Whether relevance sums up to the explained score: the scatter plot of Ali et al., ICML 2022."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum._utils.typing import TargetType
from torch import Tensor

from captum_transformer.calling.target import selected_scores
from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics.variations import Variations


@dataclass(frozen=True)
class Conservation:
    """The points of the scatter plot.

    Attributes:
        outputs: The score that was explained, for each sample: ``(B,)``.
        relevance: The sum of its relevance: ``(B,)``.

    Example:
        >>> points = Conservation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        >>> points.slope(), points.correlation(), points.difference()
        (tensor(2.), tensor(1.), tensor(2.))
    """

    outputs: Tensor
    relevance: Tensor

    def slope(self) -> Tensor:
        """The slope of the least-squares line through the points: 1 if relevance is conserved.

        NaN if all outputs are the same.
        """
        x, y = self._centred()
        return x.dot(y) / x.dot(x)

    def correlation(self) -> Tensor:
        """Pearson's correlation of the outputs and the sums; NaN if either doesn't vary."""
        x, y = self._centred()
        return x.dot(y) / (x.dot(x) * y.dot(y)).sqrt()

    def difference(self) -> Tensor:
        """The mean distance between an output and its sum: 0 if relevance is conserved."""
        return (self.relevance - self.outputs).abs().mean()

    @staticmethod
    def cat(parts: Sequence[Conservation]) -> Conservation:
        """Joins the points of several batches.

        Args:
            parts: The points of each batch.

        Returns:
            The points of all batches.
        """
        return Conservation(
            torch.cat([part.outputs for part in parts]),
            torch.cat([part.relevance for part in parts]),
        )

    def _centred(self) -> tuple[Tensor, Tensor]:
        return self.outputs - self.outputs.mean(), self.relevance - self.relevance.mean()


def conservation(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    additional_forward_kwargs: Mapping[str, Any] | None = None,
) -> Conservation:
    r"""Compares sums of relevance with the scores that were explained (ICML 2022, figure 3).

    A method conserves relevance if :math:`\sum_i R_i = f(x)`: the points lie on the diagonal.

    Args:
        forward_func: The model that was explained, as in Captum.
        inputs: The inputs as they were passed to the method: a tensor, a tuple or a mapping.
        attributions: The result of the method; the relevance of all inputs is summed.
        target: The output that was explained, in any of Captum's forms.
        additional_forward_args: Further arguments by position, as in Captum.
        additional_forward_kwargs: Further arguments by name.

    Returns:
        A point for each sample.

    Raises:
        InvalidInputError: If the attributions don't have a row for each sample.
        AmbiguousOutputError: If the model doesn't return scores.

    References:
        `XAI for Transformers: Better Explanations through Conservative Propagation
        <https://arxiv.org/abs/2202.07304>`_.

    Example:
        >>> from captum.attr import InputXGradient
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> x = torch.rand(4, 3)
        >>> points = conservation(model, x, InputXGradient(model).attribute(x, target=1), target=1)
        >>> bool(points.difference() < 1e-6)
        True
    """
    variations = Variations(
        forward_func, inputs, additional_forward_args, additional_forward_kwargs
    )
    parts = tuple(attributions.values()) if isinstance(attributions, Mapping) else attributions
    parts = (parts,) if isinstance(parts, Tensor) else tuple(parts)
    if not parts or any(len(part) != variations.samples for part in parts):
        raise InvalidInputError(
            f"There are {variations.samples} samples, but attributions of shapes "
            f"{[tuple(part.shape) for part in parts]}: one row for each sample is needed."
        )
    rows = torch.arange(variations.samples, device=variations.tensors[0].device)
    outputs = variations.run([(variations.tensors, rows)], total=1)
    scores = selected_scores(outputs[:, 0], target, variations.samples)
    sums = [part.detach().flatten(1).to(scores).sum(1) for part in parts]
    return Conservation(scores, torch.stack(sums).sum(0))
