"""The classes that are explained, and the model's predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from lightning_callbacks.samples.scores import class_scores

ClassSlot: TypeAlias = Literal["label", "predicted"] | int
"""A slot in the log: the sample's label, the class that is currently predicted, or a class id."""


class Facts(NamedTuple):
    """A model's prediction for a sample, and the class that is explained.

    Attributes:
        label: The sample's label or labels, or None if the batch has no labels.
        predicted: The predicted class.
        likely: The probability of the predicted class.
        explained: The class that is explained.
        probability: The probability of the explained class.
        is_amount: Whether the values are amounts instead of probabilities, as in a regression.
    """

    label: str | None
    predicted: str
    likely: float
    explained: str
    probability: float
    is_amount: bool = False

    def caption(self, method: str) -> str:
        """Writes the facts in short lines, whose number is the same for each step.

        Args:
            method: The name of the method.

        Returns:
            The lines.

        Example:
            >>> print(Facts("zebra", "horse", 0.61, "zebra", 0.3).caption("lrp"))
            lrp → zebra, p = 0.30
            label: zebra
            predicted: horse (0.61)
            >>> print(Facts("21.5", "output", 20.9, "output", 20.9, is_amount=True).caption("lrp"))
            lrp → output = 20.9
            label: 21.5
        """
        if self.is_amount:
            lines = [f"{method} → {self.explained} = {self.probability:.4g}"]
            return "\n".join(lines if self.label is None else [*lines, f"label: {self.label}"])
        lines = [f"{method} → {self.explained}, p = {self.probability:.2f}"]
        if self.label is not None:
            lines.append(f"label: {self.label}")
        return "\n".join([*lines, f"predicted: {self.predicted} ({self.likely:.2f})"])

    def columns(self) -> dict[str, Any]:
        """Returns the facts as cells of a table."""
        columns = self._asdict()
        del columns["is_amount"]
        return columns


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for some samples.

    Attributes:
        probabilities: ``(B, C)``, float32 on the CPU.
        labels: As in `Samples`, on the CPU.
        class_names: The names of the classes, or None.
        single: Whether the output has no dimension for classes, so that it can take no target.
        amounts: Whether the values are amounts instead of probabilities, as in a regression.
    """

    probabilities: Tensor
    labels: Tensor | None
    class_names: Sequence[str] | None = None
    single: bool = False
    amounts: bool = False

    def classes(self, slot: ClassSlot) -> list[int | None]:
        """Returns the class of each sample for a slot.

        For a model with one output, such as a binary classifier, only this output can be explained.

        Args:
            slot: The slot. If a sample has several labels, the first one with the largest value is
                chosen, so that it stays the same during training.

        Returns:
            A class id per sample, or None for a sample without a label, or with a label for which
            the model has no output, such as a negative one.

        Raises:
            ValueError: If the slot doesn't fit the model or the batch.
        """
        count = self.probabilities.shape[1]
        if isinstance(slot, int):
            if not 0 <= slot < count:
                raise ValueError(
                    f"The class id {slot} doesn't exist: the model has {count} outputs."
                )
            return [slot] * len(self.probabilities)
        if slot == "predicted":
            return list(self._predicted())
        if (values := self._label_amounts()) is not None:
            return [None if row.isnan().any() else int(row.argmax()) for row in values]
        if count == 1:
            return [0 if label else None for label in self._labels(count)]
        return [label[0] if label and label[0] < count else None for label in self._labels(count)]

    def unknown_labels(self) -> list[int]:
        """Returns the labels that are class ids for which the model has no output."""
        count = self.probabilities.shape[1]
        if self._label_amounts() is not None:
            return []
        ids = {label for labels in self._labels(count) for label in labels}
        return [] if count == 1 else sorted(label for label in ids if label >= count)

    def of_slots(self, slots: Sequence[ClassSlot]) -> dict[ClassSlot, list[int | None]]:
        """Returns the classes of several slots.

        If samples have several labels, the slot ``"predicted"`` has the most probable class that no
        other slot has.

        Args:
            slots: The slots.

        Returns:
            A class id per sample, see `classes`.
        """
        found = {slot: self.classes(slot) for slot in slots}
        others = [ids for slot, ids in found.items() if slot != "predicted"]
        several = self.labels is not None and self.labels.dim() > 1 and self.labels.shape[1] > 1
        if several and others and "predicted" in found:
            ranked = self.probabilities.argsort(dim=1, descending=True, stable=True).tolist()
            found["predicted"] = [
                next((class_id for class_id in ids if class_id not in taken), None)
                for ids, taken in zip(ranked, zip(*others, strict=True), strict=True)
            ]
        return found

    def facts(self, row: int, class_id: int) -> Facts:
        """Returns the prediction for a sample and the explained class as texts.

        Args:
            row: The sample's number.
            class_id: The class that is explained.

        Returns:
            The facts.
        """
        probabilities = self.probabilities[row]
        count = len(probabilities)
        predicted = self._predicted()[row]
        likely = float(probabilities[predicted])
        shown = int(likely >= 0.5) if count == 1 else predicted
        label = None
        if (values := self._label_amounts()) is not None:
            label = f"{float(values[row, class_id]):.4g}"
        elif self.labels is not None:
            label = ", ".join(self._name(each) for each in self._labels(count)[row]) or "none"
        explained = "output" if count == 1 else self._name(class_id)
        probability = float(probabilities[class_id])
        if self.amounts:
            return Facts(label, explained, probability, explained, probability, is_amount=True)
        return Facts(label, self._name(shown), likely, explained, probability)

    def _label_amounts(self) -> Tensor | None:
        """Returns the labels ``(B, C)`` if they are amounts of the outputs, or None for classes."""
        count = self.probabilities.shape[1]
        labels = self.labels
        if labels is None or not _are_amounts(labels, count):
            return None
        return labels.float().reshape(-1, count)

    def _predicted(self) -> list[int]:
        predicted: list[int] = self.probabilities.argmax(1).tolist()
        return predicted

    def _labels(self, count: int) -> list[list[int]]:
        """Returns the labels of each sample, the most important first."""
        if self.labels is None:
            raise ValueError(
                'The batch has no labels, so there is no class for the slot "label". Explain the '
                'slot "predicted" or a class id, or pass batch_to_inputs= if the labels were not '
                "found."
            )
        labels = self.labels
        if labels.dim() == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dim() == 1:
            return [[label] if label >= 0 else [] for label in labels.long().tolist()]
        if labels.dim() != 2 or labels.shape[1] != count:
            raise ValueError(
                f"Labels must be class ids (B,) or one value for each of the {count} classes (B, "
                f"{count}), got the shape {tuple(labels.shape)}. Pass batch_to_inputs= to convert "
                "them."
            )
        # Stable, so that among equal labels the first class comes first.
        order = labels.float().sort(dim=1, descending=True, stable=True)
        return [
            [index for value, index in zip(values, indices, strict=True) if value > 0]
            for values, indices in zip(order.values.tolist(), order.indices.tolist(), strict=True)
        ]

    def _name(self, class_id: int) -> str:
        if self.class_names is not None and class_id < len(self.class_names):
            return self.class_names[class_id]
        return str(class_id)


def read_output(
    output: Any,
    labels: Tensor | None,
    *,
    class_names: Sequence[str] | None = None,
    probabilities: Callable[[Tensor], Tensor] | None = None,
) -> Predictions:
    """Reads predictions from a model's output.

    Args:
        output: Scores ``(B, C)`` or ``(B,)``; or an output object, a mapping or a tuple that has
            them as ``logits``, or has only one tensor that can be the scores.
        labels: The samples' labels.
        class_names: The names of the classes.
        probabilities: Converts scores to probabilities. By default a softmax over the classes, or a
            sigmoid if samples have several labels or the model has a single output. If the labels
            can't be classes, as in a regression, scores are amounts and are not converted.

    Returns:
        The predictions.

    Raises:
        ValueError: If the output isn't one score per class, or several parts of it may be the
            scores.

    Example:
        >>> import torch
        >>> read_output(torch.tensor([[0.0, 2.0]]), torch.tensor([0])).classes("predicted")
        [1]
    """
    scores = class_scores(output)
    single = scores.dim() == 1
    scores = scores.detach().float().reshape(len(scores), -1)
    if probabilities is not None:
        values = probabilities(scores)
    elif labels is not None and _are_amounts(labels, scores.shape[1]):
        values = scores
    else:
        several = labels is not None and labels.dim() == 2 and labels.shape[1] > 1
        values = scores.sigmoid() if several or scores.shape[1] == 1 else scores.softmax(1)
    amounts = values is scores or bool(((values < 0) | (values > 1)).any())
    labels = None if labels is None else labels.cpu()
    return Predictions(values.cpu(), labels, class_names, single=single, amounts=amounts)


def _are_amounts(labels: Tensor, count: int) -> bool:
    """Returns whether some label can be neither a class id nor a share of a class."""
    if labels.numel() != len(labels) * count:
        return False
    if count > 1:
        return labels.is_floating_point() and bool(((labels < 0) | (labels > 1)).any())
    # A negative integer stands for no label; a single output has the classes 0 and 1.
    possible = (labels == 0) | (labels == 1)
    return not bool((possible if labels.is_floating_point() else possible | (labels < 0)).all())
