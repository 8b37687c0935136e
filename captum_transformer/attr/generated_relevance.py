"""Relevance for generated text: for each token, for spans, and through the model's reasoning."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from captum_transformer.attr.causality import require_causal, require_prompt
from captum_transformer.attr.generation import Generation
from captum_transformer.attr.hops import followed
from captum_transformer.attr.logged import logged
from captum_transformer.attr.shown import progress_of
from captum_transformer.attr.spans import Spans
from captum_transformer.calling.arguments import Arguments, Inputs
from captum_transformer.errors import InvalidInputError
from captum_transformer.trace.forward import TracedForward


class GeneratedRelevance(ABC):
    """The base class of methods that can explain generated text."""

    @logged
    def attribute_generated(
        self,
        inputs: Inputs,
        generated: Any,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        generated_as: str | None = None,
        rather_than: Tensor | int | None = None,
        spans: Spans | None = None,
        hops: int | None = 0,
        include_generated: bool = False,
        show_progress: bool = False,
    ) -> Inputs:
        """Attributes generated tokens' logits to the prompt; the model runs only once.

        Args:
            inputs: the prompt that was passed to ``generate``, in the forms of :meth:`attribute`.
            generated: the ids that ``generate`` returned, ``(samples, tokens)``, or the object that
                has them as its ``sequences``. For a decoder-only model they begin with the prompt,
                for an encoder-decoder model with a start token.
            additional_forward_args: as in :meth:`attribute`. Arguments with an entry for each
                token must include the generated tokens: a mask must be extended.
            additional_forward_kwargs: the same by name. If the model supports it,
                ``logits_to_keep`` (generated tokens + 1) saves memory.
            generated_as: the name of the argument that takes ``generated``, for inputs by name:
                one of them, which ``generated`` continues, or the decoder's, such as
                ``"decoder_input_ids"``. Not needed if there is only one input, which is continued.
            rather_than: explain why each token and not another: ids ``(samples, generated
                tokens)``, or of a shape that broadcasts to it; -100 to explain a token
                without a comparison, such as outside the answer, which matters for `hops`.
            spans: explain the sum of several tokens' logits, such as a sentence's or the final
                answer's, with one backward pass for each span: a list of ``(start, end)`` or
                slices, which count generated tokens from 0 and exclude the end; or weights
                ``(spans, generated tokens)`` or ``(samples, spans, generated tokens)``. None: each
                token separately.
            hops: how often relevance of earlier generated tokens, such as those of a reasoning, is
                passed on; None: until all of it is on the prompt. It requires
                ``include_generated=True``, since the relevance left on generated tokens is part of
                the result. See below.
            include_generated: return the relevance of all of ``generated`` instead of the prompt
                only.
            show_progress: show a progress bar with a step for each span.

        In a hop, all generated tokens with positive relevance are explained together, their logits
        weighted by it. Their relevance is divided among the tokens that support them (those with
        positive relevance), in proportion. Tokens with negative relevance are treated in the same
        way, and their relevance stays negative. So each hop conserves the sum over all inputs. It
        takes one backward pass, or two if there is relevance of both signs. An input other than
        token ids, such as an image, counts as a whole.

        Returns:
            As ``inputs``, each with an axis for the generated tokens, or spans, after the
            samples: ``(samples, spans, prompt tokens)`` for prompt ids. With ``include_generated``,
            the input that takes ``generated`` has ``(samples, spans, tokens)``, as many as
            ``generated``; for an encoder-decoder model it is added under the name ``generated_as``.
            Tokens after the end of a sample's text are explained like any other.

        Raises:
            InvalidInputError: if ``generated`` does not continue the prompt, spans are outside of
                it, scores look ahead or see nothing of the prompt, or a mask or cache hides tokens.
            AmbiguousOutputError: if the model returns no logits for each token.
            UnsupportedOperationError: if the method's relevance of a token depends on later ones.

        Example:
            >>> import torch, transformers
            >>> from captum_transformer import GenericAttentionRelevance
            >>> config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50)
            >>> model = transformers.GPT2LMHeadModel(config)
            >>> prompt = torch.tensor([[3, 14, 15]])
            >>> sequences = torch.tensor([[3, 14, 15, 9, 26, 5]])  # model.generate(prompt, ...)
            >>> method = GenericAttentionRelevance(model)
            >>> method.attribute_generated(prompt, sequences).shape
            torch.Size([1, 3, 3])

            The last two tokens, and what the first one was generated from:

            >>> through = method.attribute_generated(
            ...     prompt, sequences, spans=[(1, 3)], hops=None, include_generated=True
            ... )
            >>> through.shape, through[0, 0, 3:].tolist()
            (torch.Size([1, 1, 6]), [0.0, 0.0, 0.0])
        """
        _check_hops(hops, include_generated=include_generated)
        prompt = Arguments(inputs)
        generation = Generation(prompt, generated, generated_as, rather_than, spans)
        arguments = Arguments[Any](
            generation.inputs, additional_forward_args, additional_forward_kwargs
        )
        generation.check(arguments.further)
        with self._traced(arguments) as forward:
            generation.read(forward)
            self._check_causal(forward)
            generation.watch(forward)
            slopes: list[Tensor] = []
            weights: list[Tensor] = []

            def explain(target: Any, weight: Tensor) -> tuple[Tensor, ...]:
                relevance = self._attribute_inputs(forward, target)
                slopes.append(generation.slopes(forward, target))
                weights.append(weight)
                return relevance

            ids = [not tensor.is_floating_point() for tensor in arguments.inputs]
            maps = []
            spans_of = generation.targets()
            with progress_of(self, len(spans_of), show=show_progress) as step:
                for target, weight in spans_of:
                    direct = explain(target, weight)
                    maps.append(
                        followed(
                            direct,
                            ids,
                            generation.place,
                            generation.start,
                            hops,
                            lambda weight: explain(generation.weighted(weight), weight),
                        )
                    )
                    step()
            require_causal(slopes, weights)
            if generation.continues and not include_generated:
                require_prompt(slopes, generation.start)
        found: Inputs = generation.restored(maps, include_generated=include_generated)
        return found

    @abstractmethod
    def _traced(self, arguments: Arguments[Any]) -> AbstractContextManager[TracedForward]:
        """Returns a context that runs the model's forward pass under the trace."""

    @abstractmethod
    def _attribute_inputs(self, forward: TracedForward, target: Any) -> tuple[Tensor, ...]:
        """Returns the relevance of each input."""

    @abstractmethod
    def _check_causal(self, forward: TracedForward) -> None:
        """Raises an error if the relevance of a score depends on later tokens."""


def _check_hops(hops: Any, *, include_generated: bool) -> None:
    if hops is not None and (not isinstance(hops, int) or isinstance(hops, bool) or hops < 0):
        raise InvalidInputError(
            f"`hops` must be a number from 0 on, or None for as many as it takes, got {hops!r}."
        )
    if hops != 0 and not include_generated:
        raise InvalidInputError(
            "With `hops`, some relevance may remain on generated tokens, and without it the sum "
            "is incomplete: pass `include_generated=True`. The first entries of the result "
            "are the prompt's."
        )
