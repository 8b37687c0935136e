"""Runs and explains classifiers of texts or images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

import captum_transformer
from captum_transformer import Description, TransformerMethod, describe
from captum_transformer.captured import Repeated
from captum_transformer.cli import names
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Class
from captum_transformer.cli.progress import complain
from captum_transformer.errors import AmbiguousOutputError, ExplanationError
from captum_transformer.explainers.defaults import ONE_TOKEN, TEXT, Choice, for_images
from captum_transformer.explainers.readout import activation_of, class_readout, class_scores

Kind = Literal["text", "image"]

METHODS: dict[str, type[TransformerMethod]] = {
    name: getattr(captum_transformer, name) for name in names.METHODS
}


class Classifier:
    """A model with one score for each class, and the names of the classes.

    Args:
        model: The model; its output is a tensor ``(samples, classes)``, or has one as
            ``logits``.
        names: The known names of the classes.
        kind: The kind of the model's input.
        methods: The names of the methods to explain with; by default the one that the study
            recommends.
        classes: The classes to explain.
        top: Without `classes`, the number of most likely classes to explain.
        captured: Repeat explanations as graphs, from the second input of a shape on.
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
        captured: bool = False,
    ) -> None:
        self._model = model
        self._names = names
        self._kind: Kind = kind
        self._captured = captured
        self._explain = {name: self._explainer(METHODS[name]) for name in methods}
        self._asked = list(dict.fromkeys(classes))
        self._top = top
        self._said = False
        self._descriptions: dict[torch.Size, Description | None] = {}

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self._model.parameters()).device

    def explain(
        self, inputs: Tensor, context: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Class], dict[str, list[Tensor]]]:
        """Explains one sample.

        Args:
            inputs: A batch of one.
            context: Further arguments of the model by name, such as a mask.

        Returns:
            The classes, and for each method one attribution for each class, shaped as the sample.

        Raises:
            UserError: If the model doesn't return scores of classes, or has fewer classes.
        """
        inputs = inputs.to(self.device)
        context = {name: tensor.to(self.device) for name, tensor in (context or {}).items()}
        if not self._explain:
            method, reason = self._choice(inputs)
            name = method.__name__
            self._explain = {name: self._explainer(method)}
            complain(f"{name}, since {reason} (docs/study.md); --method takes another")
        classes = self._classes(inputs, context)
        targets = [[chosen.number] for chosen in classes]
        return classes, {
            name: [
                values[0].cpu()
                for values in explain(inputs, targets, additional_forward_kwargs=context)
            ]
            for name, explain in self._explain.items()
        }

    def grid(self, images: Tensor) -> tuple[int, int] | None:
        """Finds the patches of images.

        Args:
            images: A batch of one.

        Returns:
            The numbers of rows and columns of patches that the model cuts images into, or None if
            unknown.
        """
        description = self._description(images.to(self.device))
        grid = None if description is None else next(iter(description.grids.values()), None)
        if grid is not None and not self._said:
            self._said = True
            complain(f"maps: summed by patch, {grid[0]} x {grid[1]} (--pixels shows pixels)")
        return grid

    def _explainer(self, method: type[TransformerMethod]) -> Callable[..., Any]:
        made = method(self._model)
        if self._captured:
            return Repeated(made, "attribute_targets", _complain_uncaptured)
        return made.attribute_targets

    def _choice(self, inputs: Tensor) -> Choice:
        if self._kind == "text":
            return TEXT
        description = self._description(inputs)
        return ONE_TOKEN if description is None else for_images(description)

    def _description(self, inputs: Tensor) -> Description | None:
        if inputs.shape not in self._descriptions:
            try:
                self._descriptions[inputs.shape] = describe(self._model, inputs)
            except ExplanationError:
                # The method itself will report why the model can't be explained.
                self._descriptions[inputs.shape] = None
        return self._descriptions[inputs.shape]

    def _classes(self, inputs: Tensor, context: Mapping[str, Tensor]) -> list[Class]:
        with torch.no_grad():
            output = self._model(inputs, **context)
        try:
            scores = class_scores(output)[0]
        except AmbiguousOutputError as error:
            raise UserError(f"{error} Explain it in Python, see docs/models.md.") from error
        numbers = self._asked or scores.topk(min(self._top, len(scores))).indices.tolist()
        if max(numbers) >= len(scores):
            raise UserError(
                f"there is no class {max(numbers)}: the model has {len(scores)}, from 0 on"
            )
        activation = activation_of(self._model)
        found = [class_readout(output, number, self._names, activation) for number in numbers]
        return [
            Class(number, self._names.get(number, ""), each.score, each.probability)
            for number, each in zip(numbers, found, strict=True)
        ]


def _complain_uncaptured(why: str) -> None:
    complain(f"warning: explained uncaptured: {why}")
