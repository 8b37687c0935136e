"""Explains given or generated answers of a language model."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer import TransformerMethod
from captum_transformer.attr.generation import NOT_COMPARED
from captum_transformer.cli.classifier import METHODS
from captum_transformer.cli.errors import UserError
from captum_transformer.cli.explanation import Class, TextExplanation
from captum_transformer.cli.progress import complain
from captum_transformer.cli.words import joined
from captum_transformer.explainers.defaults import TEXT
from captum_transformer.explainers.words import Merge, Unit
from captum_transformer.visualization import decode_with_offsets

DECODER = "decoder_input_ids"


@dataclass(frozen=True)
class Asked:
    """The user's question about the answer of a language model.

    Attributes:
        answer: The answer, or None to generate one.
        generate: The maximum number of generated tokens.
        rather_than: Another answer, which the answer is compared with.
        parts: The words of the answer that are explained; by default all of them together.
        each: Explain each token of the answer by itself.
        hops: How often relevance is passed on from generated tokens; None: until it has reached
            the prompt.
        chat: Whether a text is a user's message in a chat.
    """

    answer: str | None = None
    generate: int = 0
    rather_than: str | None = None
    parts: Sequence[str] = ()
    each: bool = False
    hops: int | None = 0
    chat: bool = False


@dataclass(frozen=True)
class Answer(Class):
    """An explained part of an answer.

    Attributes:
        other: The text that it is compared with, or empty.
    """

    other: str = ""

    def __str__(self) -> str:
        """Returns the part and its alternative, for instance ``“Paris” rather than “Rome”``."""
        return f"“{self.name}”" + (f" rather than “{self.other}”" if self.other else "")


class LanguageModel:
    """A model that generates text, with its tokenizer and the question about its answers.

    Args:
        model: A model of Transformers that can generate.
        tokenizer: Its tokenizer.
        asked: The question.
        longest: The maximum number of tokens of the model.
        methods: The names of the methods to explain with; by default the one that the study
            recommends.
        unit: The unit that relevance is summed by.
        special_in_scale: Let special tokens set the colour scale.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        asked: Asked,
        *,
        longest: int,
        methods: Sequence[str] = (),
        unit: Unit = "word",
        special_in_scale: bool = False,
    ) -> None:
        self._model: nn.Module = model
        self._config = model.config
        self._tokenizer = tokenizer
        self._asked = asked
        self._longest = longest
        self._unit: Unit = unit
        self._special_in_scale = special_in_scale
        self._methods: dict[str, TransformerMethod] = {
            name: METHODS[name](model) for name in methods
        }

    def explain(self, text: str, name: str) -> TextExplanation:
        """Explains the answer to one prompt.

        Args:
            text: The prompt.
            name: The name of the prompt.

        Returns:
            The explanation, by words of the prompt and of the answer before the explained part.

        Raises:
            UserError: If the prompt or the answer does not fit the model or the question.
        """
        prompt, written = self._prompt(text)
        answer = self._generated(prompt) if self._asked.answer is None else None
        if answer is None:
            answer = self._of_answer(written, self._asked.answer or "")
        if len(prompt) + len(answer) > self._longest:
            raise UserError(
                f"prompt and answer have {len(prompt) + len(answer):,} tokens, the model takes "
                f"{self._longest:,}: shorten them"
            )
        said, places, whole = decode_with_offsets(self._tokenizer, answer)
        spans, others, rather_than = self._spans(written, answer, places, whole)
        ids = {"input_ids": torch.tensor([prompt], device=self._device)}
        start = [] if not self._is_encoder_decoder else [self._start]
        sequence = [*start, *answer] if start else [*prompt, *answer]
        generated = torch.tensor([sequence], device=self._device)
        if not self._methods:
            default = TEXT.method.__name__
            self._methods = {default: TEXT.method(self._model)}
            complain(f"{default}, since {TEXT.reason} (docs/study.md); --method takes another")
        of_tokens = {}
        for method, explain in self._methods.items():
            found = explain.attribute_generated(
                ids,
                generated,
                generated_as=DECODER if start else "input_ids",
                rather_than=rather_than,
                spans=spans,
                hops=self._asked.hops,
                include_generated=True,
                additional_forward_kwargs=self._few_logits(answer),
            )
            rows = torch.cat([tensor[0] for tensor in found.values()], 1).cpu()
            if start:  # the start token is added by the model, between the two texts
                rows = torch.cat([rows[:, : len(prompt)], rows[:, len(prompt) + 1 :]], 1)
            of_tokens[method] = list(rows)
        scores = self._scores(ids, generated, answer, spans, rather_than)
        classes = [
            Answer(number, _said(whole, places[a:b]), score, other=others)
            for number, ((a, b), score) in enumerate(zip(spans, scores, strict=True))
        ]
        before = decode_with_offsets(self._tokenizer, prompt)
        parts = [
            Merge(self._tokenizer, ids, *of_it, self._unit, special_in_scale=self._special_in_scale)
            for ids, of_it in ((prompt, before), (answer, (said, places, whole)))
        ]
        return joined(name, classes, of_tokens, parts)

    def _few_logits(self, answer: Sequence[int]) -> dict[str, int]:
        """Returns the option to compute only the answer's logits, if the model has it."""
        takes = inspect.signature(self._model.forward).parameters
        return {"logits_to_keep": len(answer) + 1} if "logits_to_keep" in takes else {}

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    @property
    def _is_encoder_decoder(self) -> bool:
        return bool(getattr(self._config, "is_encoder_decoder", False))

    @property
    def _start(self) -> int:
        start = getattr(self._config, "decoder_start_token_id", None)
        if start is None:
            raise UserError("the model's configuration doesn't define the decoder's start token")
        return int(start)

    def _prompt(self, text: str) -> tuple[list[int], str]:
        """Returns the ids of the prompt, and the text that an answer is appended to."""
        if not text.strip():
            raise UserError("the prompt is empty")
        if not self._asked.chat:
            return list(self._tokenizer(text, verbose=False)["input_ids"]), text
        if not getattr(self._tokenizer, "chat_template", None):
            raise UserError("the model has no chat template: omit --chat")
        written = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return self._ids(written), written

    def _ids(self, text: str) -> list[int]:
        coded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return list(coded["input_ids"])

    def _of_answer(self, prompt: str, answer: str) -> list[int]:
        """Returns the ids that an answer adds to those of the prompt."""
        if self._is_encoder_decoder:
            found = self._ids(answer)
        else:
            before, whole = self._ids(prompt), self._ids(prompt + answer)
            if whole[: len(before)] != before:
                raise UserError(
                    f"with the answer {answer!r} behind it, the end of the prompt is cut into "
                    "other tokens: end the prompt without a space, and begin the answer with it"
                )
            found = whole[len(before) :]
        if not found:
            raise UserError(f"the answer {answer!r} has no tokens")
        return found

    @torch.no_grad()
    def _generated(self, prompt: list[int]) -> list[int]:
        model: Any = self._model
        ids = torch.tensor([prompt], device=self._device)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self._asked.generate,
            do_sample=False,
        )[0].tolist()
        answer: list[int] = found[1 if self._is_encoder_decoder else len(prompt) :]
        if not answer:
            raise UserError("the model has generated nothing")
        return answer

    def _spans(
        self, prompt: str, answer: list[int], places: Sequence[tuple[int, int]], whole: str
    ) -> tuple[list[tuple[int, int]], str, Tensor | None]:
        """Returns the spans of tokens to explain, and the token that they are compared with."""
        asked = self._asked
        if asked.rather_than is not None:
            other = self._of_answer(prompt, asked.rather_than)
            pairs = enumerate(zip(answer, other, strict=False))
            at = next((at for at, (one, two) in pairs if one != two), None)
            if at is None:
                raise UserError(
                    f"{asked.rather_than!r} and the answer have no token in which they differ"
                )
            compared = torch.full((1, len(answer)), NOT_COMPARED, device=self._device)
            compared[0, at] = other[at]
            _, _, said = decode_with_offsets(self._tokenizer, [other[at]])
            return [(at, at + 1)], said.strip() or said, compared
        if asked.each:
            return [(at, at + 1) for at in range(len(answer))], "", None
        spans = []
        for part in asked.parts:
            if whole.count(part) != 1:
                raise UserError(
                    f"--part {part!r} is in the answer {whole.count(part)} times, and must be "
                    f"there once: {whole!r}"
                )
            start = whole.index(part)
            inside = [at for at, (a, b) in enumerate(places) if a < start + len(part) and b > start]
            spans.append((inside[0], inside[-1] + 1))
        return spans or [(0, len(answer))], "", None

    @torch.no_grad()
    def _scores(
        self,
        ids: dict[str, Tensor],
        generated: Tensor,
        answer: list[int],
        spans: Sequence[tuple[int, int]],
        rather_than: Tensor | None,
    ) -> list[float]:
        """Returns the sum of each span's logits, minus those that they are compared with."""
        named = (
            {**ids, DECODER: generated} if self._is_encoder_decoder else {"input_ids": generated}
        )
        logits = (
            self._model(**named, **self._few_logits(answer))
            .logits[0, -len(answer) - 1 : -1]
            .float()
        )
        tokens = torch.tensor(answer, device=logits.device)
        scores = logits.gather(1, tokens[:, None])[:, 0]
        if rather_than is not None:
            others = rather_than[0].clamp(min=0)
            less = logits.gather(1, others[:, None])[:, 0]
            scores = scores - less.where(rather_than[0] >= 0, 0.0)
        return [float(scores[start:end].sum()) for start, end in spans]


def _said(text: str, places: Sequence[tuple[int, int]]) -> str:
    """Returns the text of some tokens, without surrounding spaces."""
    said = text[places[0][0] : max(end for _, end in places)]
    return said.strip() or said
