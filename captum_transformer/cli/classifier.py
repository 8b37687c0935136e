"""Runs a classifier and its explanations, whatever it reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LeGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerMethod,
)
from captum_transformer.cli.defaults import Kind, choose
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Class
from captum_transformer.cli.progress import complain

METHODS: dict[str, type[TransformerMethod]] = {
    method.__name__: method
    for method in (
        TransformerAttribution,
        GenericAttentionRelevance,
        ConservativeLRP,
        AttnLRP,
        GIM,
        LeGrad,
        PartialLRP,
        AttentionGradCam,
        AttentionRollout,
        RawAttention,
    )
}


class Classifier:
    """A model with one score for each class, and the names of these.

    Args:
        model: The model; what it returns is a tensor ``(samples, classes)``, or has it
            as ``logits``.
        names: The known names of the classes.
        kind: What the model reads.
        methods: The names of the methods to explain with; by default one that `choose` picks.
        classes: The classes to explain.
        top: Without any: explain this many of the most likely.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[int, str],
        *,
        kind: Kind,
        methods: Sequence[str] = (),
        classes: Sequence[int] = (),
        top: int = 1,
    ) -> None:
        self._model = model
        self._names = names
        self._kind: Kind = kind
        self._methods = {name: METHODS[name](model) for name in methods}
        self._asked = list(dict.fromkeys(classes))
        self._top = top

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self._model.parameters()).device

    def explain(self, inputs: Tensor) -> tuple[list[Class], dict[str, list[Tensor]]]:
        """Explains one sample.

        Args:
            inputs: A batch of one.

        Returns:
            The classes, and for each method one attribution for each class, shaped as the sample.

        Raises:
            UserError: If the model doesn't return scores of classes, or not that many.
        """
        inputs = inputs.to(self.device)
        if not self._methods:
            name, reason = choose(self._kind, self._model, inputs)
            self._methods = {name: METHODS[name](self._model)}
            complain(f"{name}, since {reason} (docs/study.md); --method takes another")
        classes = self._classes(self._scores(inputs))
        targets: list[Any] = [chosen.number for chosen in classes]
        return classes, {
            name: [values[0].cpu() for values in method.attribute_targets(inputs, targets)]
            for name, method in self._methods.items()
        }

    @torch.no_grad()
    def _scores(self, inputs: Tensor) -> Tensor:
        output = self._model(inputs)
        scores = getattr(output, "logits", output)
        if not isinstance(scores, Tensor) or scores.dim() != 2 or not scores.shape[1]:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(
                f"The model doesn't return one score for each class, but {shape}. Explain it in "
                "Python, see docs/models.md."
            )
        return scores[0]

    def _classes(self, scores: Tensor) -> list[Class]:
        numbers = self._asked or scores.topk(min(self._top, len(scores))).indices.tolist()
        if max(numbers) >= len(scores):
            raise UserError(
                f"there is no class {max(numbers)}: the model has {len(scores)}, from 0 on"
            )
        return [
            Class(number, self._names.get(number, ""), float(scores[number])) for number in numbers
        ]
