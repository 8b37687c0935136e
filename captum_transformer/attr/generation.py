"""Generated text: the prompt, the generated tokens, and where their scores are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer.attr.beside import refuse_caches, refuse_unfitting, require_same_logits
from captum_transformer.attr.generated_ids import (
    check_ids,
    continued_input,
    fitting,
    ids_in,
    length_of_prompt,
    logits_in,
)
from captum_transformer.attr.spans import Spans, weights_of
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.copies import copied
from captum_transformer.calling.target import Combination, Contrast, Target, main_output
from captum_transformer.errors import AmbiguousOutputError, InvalidInputError, InvalidTargetError
from captum_transformer.rules.flow import TokenFlow
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import accumulation_dtype
from captum_transformer.trace.value import Value

# In `rather_than`: the token isn't compared with another (as ignored by torch's losses).
NOT_COMPARED = -100


class Generation:
    """A prompt and its generated tokens, for one forward pass over the finished sequence.

    Scores must not depend on later tokens, which is checked. So one pass yields all scores: the
    score of a token is its logit at the position before it.

    Args:
        prompt: the inputs that ``generate`` was called with.
        generated: the ids that ``generate`` returned, ``(samples, tokens)``.
        generated_as: the name of the argument that takes the generated ids.
        rather_than: the ids that the generated tokens are compared with.
        spans: which generated tokens are explained together; None to explain each separately.

    Attributes:
        inputs: the inputs of the model: the prompt, continued or with the decoder's ids.
        place: the index of the input that contains the generated tokens.
        continues: whether the generated tokens continue an input of the user.
        start: the index of the first generated token in that input.

    Raises:
        InvalidInputError: if the ids do not belong to the prompt.
    """

    def __init__(
        self,
        prompt: Arguments[Any],
        generated: Any,
        generated_as: str | None = None,
        rather_than: Tensor | int | None = None,
        spans: Spans | None = None,
    ) -> None:
        self._prompt = prompt
        logits = logits_in(generated)
        generated = ids_in(generated)
        self._continued = continued_input(prompt, generated_as)
        check_ids(generated, prompt.samples)
        inputs = list(prompt.inputs)
        start = 1
        if self._continued is not None:
            start = length_of_prompt(inputs[self._continued], generated)
            inputs[self._continued] = generated
        if generated.shape[1] <= start:
            raise InvalidInputError(
                f"Nothing was generated: `generated` has {generated.shape[1]} ids per sample, of "
                f"which {start} were there before."
            )
        self.inputs = prompt.restored(inputs)
        if self._continued is None:
            self.inputs[generated_as] = generated
        self._lookups: dict[GradientEdge, Value | None] = {}
        self._generated_as = generated_as
        self.start = start
        self.continues = self._continued is not None
        self.place = len(prompt.inputs) if self._continued is None else self._continued
        self._length = generated.shape[1]
        self._tokens = generated[:, start:]
        samples, steps = self._tokens.shape
        self._logits: Sequence[Tensor] | None = None
        if logits is not None and len(logits) == steps and len(logits[0]) == samples:
            self._logits = logits
        self._single = spans is None
        if spans is None:
            self._weights = torch.eye(steps).expand(samples, -1, -1)
        else:
            self._weights = weights_of(spans, samples, steps, start)
        self._signed = bool((self._weights < 0).any())
        self._others = None
        if rather_than is not None:
            given = fitting(rather_than, self._tokens)
            self._compared = given != NOT_COMPARED
            self._others = given.where(self._compared, self._tokens)

    def targets(self) -> list[tuple[Any, Tensor]]:
        """Returns a target for each span, which selects from the output that `read` sets.

        Each comes with the weights of the tokens in the span, ``(samples, generated tokens)``.
        """
        weights = list(self._weights.to(self._tokens.device).unbind(1))
        if not self._single or (self._others is not None and not bool(self._compared.all())):
            return [(self.weighted(each), each) for each in weights]
        steps = range(len(weights))
        targets: list[Target] = list(steps)
        if self._others is not None:
            targets = [Contrast(step, rather_than=len(steps) + step) for step in steps]
        return list(zip(targets, weights, strict=True))

    def weighted(self, weights: Tensor) -> Combination:
        """Returns the target of the weighted sum of the generated tokens' scores."""
        if self._others is None:
            return Combination(weights, weights.abs(), signed=self._signed)
        compared = weights * self._compared
        half = compared.abs() / 2
        return Combination(
            torch.cat([weights, -compared], 1),
            torch.cat([weights.abs() - half, half], 1),
            signed=True,
        )

    def check(self, further: Mapping[str, Any]) -> None:
        """Raises an error if a further argument does not fit the finished sequence.

        Raises:
            InvalidInputError: if there is such an argument.
        """
        if self._continued is not None:
            short = self._prompt.inputs[self._continued].shape
            refuse_unfitting(further, short[1], (short[0], self._length))
        else:
            refuse_caches(further)

    def read(self, forward: TracedForward) -> None:
        """Makes the scores of the generated tokens the output of a forward pass.

        Raises:
            AmbiguousOutputError: if the model returns no logits for the tokens.
            InvalidInputError: if the logits do not depend on the generated tokens, or differ from
                those that were returned with them.
        """
        forward.then(self._scores)
        value = forward.tape.find(forward.output)
        place = self.place
        if value is None or not value.descends_from(forward.values[place]):
            raise InvalidInputError(
                "The logits do not depend on the generated tokens, which were passed as "
                f"{forward.names[place]!r}: does the model have that argument? Say in "
                "`generated_as` which one takes them."
            )
        if self._logits is not None:
            steps = self._tokens.shape[1]
            require_same_logits(forward.output.detach()[:, :steps], self._tokens, self._logits)

    def watch(self, forward: TracedForward) -> None:
        """Makes each gradient of a score include the gradient at the ids' embeddings."""
        ids = forward.values[self.place]
        self._lookups = {
            operation.edge: operation.outputs[0]
            for operation in forward.tape.operations
            if operation.edge is not None
            and operation.kind is Kind.EMBEDDING
            and any(v is ids or v.descends_from(ids) for _, v in operation.traced())
        }
        forward.watch(list(self._lookups))

    def slopes(self, forward: TracedForward, target: Any) -> Tensor:
        """Returns how much a score changes with each token: ``(samples, tokens)``."""
        selected, _ = forward.select(target)
        slopes = zip(self._lookups.values(), forward.slopes(selected), strict=True)
        seeds = {
            output: slope.to(accumulation_dtype(slope.dtype)).abs()
            for output, slope in slopes
            if slope is not None and output is not None
        }
        ids = forward.values[self.place]
        if not seeds:
            return selected.new_zeros(ids.shape, dtype=accumulation_dtype(selected.dtype))
        return TokenFlow(forward.tape, {})(seeds, [ids])[ids]

    def restored(self, maps: Sequence[Sequence[Tensor]], *, include_generated: bool) -> Any:
        """Returns relevance in the form of the prompt: ``(samples, spans, ...)`` for each input.

        Args:
            maps: for each span, the relevance of each input of the model.
            include_generated: keep the relevance of ids after the prompt, and of a decoder's ids.
        """
        stacked = [torch.stack(rows, 1) for rows in zip(*maps, strict=True)]
        if include_generated:
            if self._continued is not None:
                return self._prompt.restored(stacked)
            *of_prompt, of_decoder = stacked
            return {**self._prompt.restored(of_prompt), self._generated_as: of_decoder}
        stacked = stacked[: len(self._prompt.inputs)]
        if self._continued is not None:
            stacked[self._continued] = stacked[self._continued][..., : self.start].contiguous()
        return self._prompt.restored(stacked)

    def _scores(self, output: Any) -> Tensor:
        logits = main_output(output)
        samples, steps = self._tokens.shape
        fits = isinstance(logits, Tensor) and logits.ndim == 3 and len(logits) == samples
        if not fits or logits.shape[1] <= steps:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise AmbiguousOutputError(
                "Generated tokens are read from logits (samples, tokens, vocabulary), here "
                f"({samples}, at least {steps + 1}, vocabulary), but the model returned {found}. "
                "Pass a function that returns the logits, for instance "
                "`lambda ids: model(ids).logits`."
            )
        # Counted from the end: the model may have kept the logits of the last tokens only.
        logits = logits[:, -steps - 1 : -1]
        tokens = copied([self._tokens] + ([] if self._others is None else [self._others]))
        ids = torch.stack(tokens)
        if bool(((ids < 0) | (ids >= logits.shape[2])).any()):
            raise InvalidTargetError(
                f"There are ids beyond the model's {logits.shape[2]} logits among the generated "
                "tokens or those that they are compared with."
            )
        return torch.cat([logits.gather(2, ids.unsqueeze(2)).squeeze(2) for ids in tokens], 1)
