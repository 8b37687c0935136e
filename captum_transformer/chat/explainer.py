"""Explains an answer from the processor's output for a conversation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from captum_transformer.attr.attn_lrp import AttnLRP
from captum_transformer.attr.beside import continued
from captum_transformer.attr.generated_ids import ids_in
from captum_transformer.chat.answer import ExplainedAnswer, Heard, of_words
from captum_transformer.chat.pictures import (
    IMAGES,
    VIDEOS,
    Kind,
    Pictures,
    refuse_other_pictures,
)
from captum_transformer.chat.words import words_of
from captum_transformer.errors import InvalidInputError

# The names of sounds in Transformers, and of floating-point inputs other than pictures and sounds.
_SOUNDS = "input_features"
_TIMES = ("second_per_grid_ts", "video_second_per_grid")


class ChatExplainer:
    """Explains each word of an answer by the words, images and sounds of the conversation.

    It takes the outputs of the processor and of ``generate``, runs the model once on the whole
    conversation, and maps relevance from the model's inputs back to words and to the original
    pictures.

    Args:
        model: a generative model of Transformers for text, images, video or audio.
        processor: its processor, or the tokenizer of a text-only model.
        method: creates the method from a forward function: a class of this package, or for example
            ``lambda forward: AttnLRP(forward, gamma=0.05)``.
        process: converts a list of PIL images to ``pixel_values``, if the image processor was
            called with options other than its own.
        process_videos: converts a list of videos, each a list of frames as PIL images, to
            ``pixel_values_videos``, if the video processor was called with options other than its
            own and ``do_sample_frames=False``.

    Example:
        >>> import torch, transformers
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from captum_transformer.chat import ChatExplainer
        >>> vocabulary = {w: i for i, w in enumerate("? what is it a cat".split())}
        >>> words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
        >>> config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=6)
        >>> model = transformers.GPT2LMHeadModel(config).eval()
        >>> inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
        >>> answer = ChatExplainer(model, tokenizer)(inputs, torch.tensor([[1, 2, 3, 4, 5]]))
        >>> answer.words, answer.prompt, tuple(answer.of_prompt.shape)
        (['a', 'cat'], ['what', 'is', 'it'], (2, 3))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        processor: Any,
        method: Callable[[Callable[..., Any]], Any] = AttnLRP,
        *,
        process: Callable[[list[Any]], Tensor] | None = None,
        process_videos: Callable[[list[Any]], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.method = method
        self._process = {IMAGES: process, VIDEOS: process_videos}

    def __call__(
        self,
        inputs: Mapping[str, Any],
        generated: Any,
        images: Sequence[Any] = (),
        *,
        videos: Sequence[Sequence[Any]] = (),
        spans: Sequence[str | tuple[int, int] | slice] | Tensor | None = None,
        rather_than: Tensor | int | None = None,
        hops: int | None = 0,
        cells: int = 32,
        show_progress: bool = False,
    ) -> ExplainedAnswer:
        """Explains an answer.

        Args:
            inputs: the processor's output for one conversation, as passed to ``generate``.
            generated: the result of ``generate``: the ids of prompt and answer, or an object that
                has them as ``sequences``.
            images: the conversation's images in their order, as PIL images. Without them there are
                no maps, only ``relevance["pixel_values"]``.
            videos: the frames of each of its videos, as PIL images: those that the model saw, at
                most 100 in total. Without them there are no maps, only
                ``relevance["pixel_values_videos"]``.
            spans: explain several words of the answer together, by one backward pass for each span:
                a list of phrases, such as ``["on the mat"]``, or of ``(start, end)`` or slices,
                which count words from 0 and exclude the end; or weights ``(spans, words)``. None:
                explain each token by itself, and sum the results by word.
            rather_than: the ids that the answer's tokens are compared with, as in
                :meth:`~captum_transformer.attr.transformer_method.TransformerMethod.attribute_generated`.
            hops: how often relevance of the answer's own earlier words is passed on to the tokens
                that these were generated from; None: until it has reached the conversation.
            cells: the number of cells along the longer side of an image's map; fewer if the model's
                input is coarser.
            show_progress: show a progress bar with a step for each token or span.

        Returns:
            The explained answer.

        Raises:
            InvalidInputError: if there are several conversations or answers, the prompt is padded,
                the answer does not continue it, a span is not in it, the processor converts the
                images or videos to other pixels, or the model's logits differ from those that
                ``generate`` returned with the ids (``output_logits=True``).
        """
        ids = _ids(inputs)
        sequences = _answer(generated, ids)
        seen = {
            name: value
            for name, value in inputs.items()
            if isinstance(value, Tensor) and value.is_floating_point() and name not in _TIMES
        }
        if not 1 <= cells <= 255:
            raise InvalidInputError(f"`cells` must be between 1 and 255, got {cells}.")
        refuse_other_pictures(images, videos)
        pictures, films = (
            Pictures(kind, given, seen.get(kind.name), self._maker(kind), cells)
            for kind, given in ((IMAGES, images), (VIDEOS, videos))
        )
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        words = words_of(tokenizer, sequences[0, ids.shape[1] :])
        weights = None if spans is None else words.weights_of(spans)
        grown = sequences.shape[1] - ids.shape[1]
        context = {
            name: continued(name, value, ids.shape, grown)
            for name, value in inputs.items()
            if name not in seen and name != "input_ids"
        }

        def forward(input_ids: Tensor, **named: Any) -> Any:
            # Images of one conversation may be rows, patches or tiles: all of them are one sample.
            whole = {name: v[0] if name in seen else v for name, v in named.items()}
            return self.model(input_ids=input_ids, **whole, use_cache=False)

        relevance = self.method(forward).attribute_generated(
            {"input_ids": ids, **{name: tensor[None] for name, tensor in seen.items()}},
            generated,
            generated_as="input_ids",
            rather_than=rather_than,
            spans=None if weights is None else words.of_tokens(weights),
            hops=hops,
            include_generated=True,
            additional_forward_kwargs=context,
            show_progress=show_progress,
        )
        of_tokens = {name: tensor[0] for name, tensor in relevance.items()}
        of_ids, length = of_tokens["input_ids"], ids.shape[1]
        of_tokens["input_ids"] = of_ids[:, :length].contiguous()
        return of_words(
            of_tokens,
            words,
            words_of(tokenizer, ids[0]),
            weights=weights,
            of_answer=of_ids[:, length:],
            images=pictures.seen(of_tokens.get(IMAGES.name)),
            videos=films.seen(of_tokens.get(VIDEOS.name)),
            heard=self._spectrograms(of_tokens, seen),
        )

    def _spectrograms(self, of_tokens: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Heard:
        """Returns sounds and their relevance, frequencies first; none if the order isn't known."""
        features, relevance = seen.get(_SOUNDS), of_tokens.get(_SOUNDS)
        extractor = getattr(self.processor, "feature_extractor", None)
        bins = getattr(extractor, "feature_size", None)
        if features is None or relevance is None or features.dim() != 3:
            return Heard([], [])
        first, second = (length == bins for length in features.shape[1:])
        if first == second:
            return Heard([], [])
        if second:
            features, relevance = features.mT, relevance.mT
        return Heard(list(features), list(relevance.unbind(1)))

    def _maker(self, kind: Kind) -> Callable[[list[Any]], Tensor]:
        """Returns the function that converts images or videos to the model's input."""

        def make(given: list[Any]) -> Tensor:
            processor = getattr(self.processor, kind.attribute, None)
            if processor is None:
                raise InvalidInputError(
                    f"{type(self.processor).__name__} has no `{kind.attribute}`, so it is unknown "
                    f"what happens to the {kind.plural} is not known: say what makes "
                    f"`{kind.name}` of them as "
                    f"`{kind.option}=`."
                )
            options = {} if kind is IMAGES else {"do_sample_frames": False}
            made = processor(**{kind.plural: given}, **options, return_tensors="pt")
            pixels: Tensor = made[kind.name]
            return pixels

        return self._process[kind] or make


def _ids(inputs: Mapping[str, Any]) -> Tensor:
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1:
        given = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise InvalidInputError(
            "One conversation is explained at a time: the inputs need `input_ids` of shape "
            f"(1, tokens), got {given}. Ask the processor for `return_tensors='pt'`."
        )
    return ids


def _answer(generated: Any, prompt: Tensor) -> Tensor:
    sequences = ids_in(generated)
    if not isinstance(sequences, Tensor) or sequences.dim() != 2 or len(sequences) != 1:
        given = (
            tuple(sequences.shape) if isinstance(sequences, Tensor) else type(generated).__name__
        )
        raise InvalidInputError(
            "One answer is explained at a time: what `generate` returned must have ids of shape "
            f"(1, tokens), got {given}. Of several, pass one as `sequences[i : i + 1]`."
        )
    length = prompt.shape[1]
    if sequences.shape[1] <= length or bool((sequences[:, :length] != prompt).any()):
        raise InvalidInputError(
            f"The {sequences.shape[1]} generated ids do not begin with the {length} of the prompt, "
            "or end with it. Pass everything that `generate` returned for these inputs; if it "
            "returned only the answer, concatenate `input_ids` and the answer."
        )
    return sequences
