"""Picks the score of a target from the output of a traced forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captum_transformer.calling.target import (
    Combination,
    Contrast,
    as_contrast,
    main_output,
    selected_scores,
)
from captum_transformer.errors import InvalidInputError
from captum_transformer.trace.combined import Combined
from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.mode import Trace
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.value import Value

_CONTRAST = Function("contrast", Kind.CONTRAST, torch.sub)


class Scores:
    """The scores of targets, as values on the tape.

    Args:
        trace: the trace of the forward pass.
        named: the values of the inputs, by the inputs' names.
        samples: the number of samples.

    Attributes:
        combined: for each score that is a weighted sum of others, what it is a sum of.
    """

    def __init__(self, trace: Trace, named: Mapping[str, Value], samples: int) -> None:
        self._trace, self._tape = trace, trace.tape
        self._named, self._samples = named, samples
        self.combined: dict[Value, Combined] = {}

    def of(self, output: Any, target: Any, *, mean_if_none: bool = False) -> tuple[Tensor, Value]:
        """Returns the score of each sample, ``(samples,)``, and its value on the tape.

        Args:
            output: the output of the model.
            target: the target, in any of Captum's forms.
            mean_if_none: whether to take the mean of all outputs of a sample if the target is None.

        Raises:
            InvalidTargetError: if the target does not fit the output.
            AmbiguousOutputError: if the model returns no tensor, or several that the target fits.
            InvalidInputError: if the score depends on none of the inputs.
        """
        contrast = as_contrast(target)
        if contrast is not None:
            selected = self._difference(output, contrast)
        elif isinstance(target, Combination):
            selected = self._sum(output, target)
        else:
            with self._trace:
                main = main_output(output)
                without = target is None and mean_if_none
                if without and isinstance(main, Tensor) and main.ndim > 1:
                    main = main.flatten(1).mean(1)
                selected = selected_scores(main, target, self._samples)
        value = self._tape.find(selected)
        if value is None or value.learned:
            raise InvalidInputError(
                "The chosen output does not depend on any of the inputs in a differentiable way: "
                "there is nothing to explain. Pass the tensors that the prediction depends on as "
                "`inputs` (not as `additional_forward_args`). If these are the inputs, the model "
                "detaches them itself, with `torch.no_grad()` or `detach`, or the score depends "
                "on them only through values that the method holds constant, such as attention "
                f"weights in ConservativeLRP.{self._of_integers()}"
            )
        return selected, value

    def require_inputs(self, value: Value) -> None:
        """Checks that a score depends on each of the inputs.

        Raises:
            InvalidInputError: if it doesn't.
        """
        unused = [
            f"{name!r}"
            for name, source in self._named.items()
            if value is not source and not self._depends_on(value, source)
        ]
        if unused:
            raise InvalidInputError(
                f"The chosen output does not depend on {' and '.join(unused)} of the inputs in a "
                "differentiable way. Pass what is not to be explained as one of "
                "`additional_forward_args` or `additional_forward_kwargs`. If the model should "
                "depend on it, check whether the model detaches it, for example with "
                "`torch.no_grad()` or `detach`."
                f"{self._of_integers()}"
            )

    def _depends_on(self, score: Value, source: Value) -> bool:
        """Returns whether a score depends on an input; on ids, by what is looked up by them."""
        if not source.holds_ids:
            return score.descends_from(source)
        return any(
            output is not None and score.descends_from(output)
            for operation in self._tape.operations
            if operation.kind is Kind.EMBEDDING
            and any(one is source or one.descends_from(source) for _, one in operation.traced())
            for output in operation.outputs
        )

    def _of_integers(self) -> str:
        names = [repr(name) for name, value in self._named.items() if value.holds_ids]
        if not names:
            return ""
        return (
            f" Integers, as in {' and '.join(names)}, are treated as token ids, whose relevance "
            f"is that of their embeddings: pass pixels and other values as floating point numbers."
        )

    def _difference(self, output: Any, contrast: Contrast) -> Tensor:
        """Returns the difference of two scores, recorded as a contrast instead of a subtraction."""
        sides = [self.of(output, target) for target in (contrast.target, contrast.rather_than)]
        difference = sides[0][0] - sides[1][0]
        operands = [self._tape.operand(*side, keep=False) for side in sides]
        self._tape.record(_CONTRAST, tuple(operands), operands, [difference])
        return difference

    def _sum(self, output: Any, combination: Combination) -> Tensor:
        with self._trace:
            scores = main_output(output)
            weights = combination.weights.to(accumulation_dtype(scores.dtype))
            selected: Tensor = (scores * weights).sum(1)
        value, source = self._tape.find(selected), self._tape.find(scores)
        if value is not None and source is not None:
            self.combined[value] = Combined(source, combination)
        return selected
