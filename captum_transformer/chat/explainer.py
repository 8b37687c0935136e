"""From what a processor has made of a conversation to an explained answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer.attr.attn_lrp import AttnLRP
from captum_transformer.attr.beside import continued
from captum_transformer.attr.generated_ids import ids_in
from captum_transformer.chat.answer import ExplainedAnswer, Heard, of_words
from captum_transformer.chat.words import words_of
from captum_transformer.errors import InvalidInputError
from captum_transformer.visualization.places import Places, places_of

# How Transformers' processors name sounds, and real numbers that are neither seen nor heard.
_SOUNDS = "input_features"
_TIMES = ("second_per_grid_ts", "video_second_per_grid")


class ChatExplainer:
    """Explains each word of an answer by the words, images and sounds of the conversation.

    It takes what the processor and ``generate`` made, runs the model once over the finished
    conversation, and brings relevance from the model's inputs back to words and to the pictures
    that were given, whatever the processor did to them.

    Args:
        model: a generative model of Transformers that reads, sees or hears.
        processor: its processor, or the tokenizer of one that only reads.
        method: makes the method of a forward function: a class of this package, or for instance
            ``lambda forward: AttnLRP(forward, gamma=0.05)``.
        process: makes ``pixel_values`` of a list of PIL images, if that took other options than the
            image processor's own.

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
    ) -> None:
        self.model = model
        self.processor = processor
        self.method = method
        self._process = process

    def __call__(
        self,
        inputs: Mapping[str, Any],
        generated: Any,
        images: Sequence[Any] = (),
        *,
        rather_than: Tensor | int | None = None,
        hops: int | None = 0,
        cells: int = 32,
    ) -> ExplainedAnswer:
        """Explains an answer.

        Args:
            inputs: what the processor made of one conversation, as ``generate`` got it.
            generated: what ``generate`` returned: the ids of prompt and answer, or an object that
                has them as ``sequences``.
            images: the conversation's images in their order, as PIL images. Without them there are
                no maps, but ``relevance["pixel_values"]``.
            rather_than: the ids that the answer's tokens are compared with, as in
                :meth:`~captum_transformer.attr.transformer_method.TransformerMethod.attribute_generated`.
            hops: how often relevance of the answer's own earlier words is sent on to what these
                were generated from; None: until it has reached the conversation.
            cells: into how many cells the longer side of an image is divided for its map; fewer
                where the model's input is coarser.

        Returns:
            The explained answer.

        Raises:
            InvalidInputError: if there are several conversations or answers, the prompt is padded,
                the answer does not continue it, the processor makes other ``pixel_values`` of the
                images, or the model has other logits than those that ``generate`` returned with
                the ids (``output_logits=True``).
        """
        ids = _ids(inputs)
        sequences = _answer(generated, ids)
        seen = {
            name: value
            for name, value in inputs.items()
            if isinstance(value, Tensor) and value.is_floating_point() and name not in _TIMES
        }
        places = self._places(seen.get("pixel_values"), images, cells)
        grown = sequences.shape[1] - ids.shape[1]
        context = {
            name: continued(name, value, ids.shape, grown)
            for name, value in inputs.items()
            if name not in seen and name != "input_ids"
        }

        def forward(input_ids: Tensor, **named: Any) -> Any:
            # Images of one conversation may be rows, patches or tiles: as one sample they are all.
            whole = {name: v[0] if name in seen else v for name, v in named.items()}
            return self.model(input_ids=input_ids, **whole, use_cache=False)

        relevance = self.method(forward).attribute_generated(
            {"input_ids": ids, **{name: tensor[None] for name, tensor in seen.items()}},
            generated,
            generated_as="input_ids",
            rather_than=rather_than,
            hops=hops,
            include_generated=True,
            additional_forward_kwargs=context,
        )
        of_tokens = {name: tensor[0] for name, tensor in relevance.items()}
        of_ids, length = of_tokens["input_ids"], ids.shape[1]
        of_tokens["input_ids"] = of_ids[:, :length].contiguous()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        return of_words(
            of_tokens,
            words_of(tokenizer, sequences[0, ids.shape[1] :]),
            words_of(tokenizer, ids[0]),
            of_answer=of_ids[:, length:],
            images=[image.convert("RGB") for image in images],
            maps=_maps(places, of_tokens.get("pixel_values"), images, cells),
            heard=self._spectrograms(of_tokens, seen),
        )

    def _spectrograms(self, of_tokens: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Heard:
        """Sounds and their relevance with frequencies before moments; none if that isn't known."""
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

    def _places(self, pixels: Tensor | None, images: Sequence[Any], cells: int) -> Places | None:
        if not 1 <= cells <= 255:
            raise InvalidInputError(f"`cells` must be between 1 and 255, got {cells}.")
        listed = isinstance(images, (list, tuple))
        if not listed or not all(hasattr(image, "convert") for image in images):
            raise InvalidInputError(
                f"`images` must be a list of PIL images, got {type(images).__name__}: "
                "`[PIL.Image.open(path)]`."
            )
        if not images:
            return None
        process = self._process or self._by_processor
        made = process(list(images))
        if pixels is None or made.shape != pixels.shape or not _alike(made, pixels):
            raise InvalidInputError(
                f"The processor makes `pixel_values` of shape {tuple(made.shape)} of the "
                f"{len(images)} images, and the inputs have "
                f"{'none' if pixels is None else f'others, of shape {tuple(pixels.shape)}'}. Give "
                "all images of the conversation in their order (if they were turned when "
                "they were loaded, by `PIL.ImageOps.exif_transpose`), and where the processor was "
                "called with options of its own, what it does to images as `process=`."
            )
        return places_of(process, images)

    def _by_processor(self, images: list[Any]) -> Tensor:
        image_processor = getattr(self.processor, "image_processor", None)
        if image_processor is None:
            raise InvalidInputError(
                f"{type(self.processor).__name__} has no `image_processor`, so what becomes of the "
                "images is not known: say what makes `pixel_values` of them as `process=`."
            )
        made: Tensor = image_processor(images=images, return_tensors="pt")["pixel_values"]
        return made


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
            "or end with it. Pass all that `generate` returned for these inputs, and the "
            "`input_ids` before it where it returned the answer alone."
        )
    return sequences


def _alike(made: Tensor, pixels: Tensor) -> bool:
    """Whether two inputs are the same, but for the precision that a model's inputs have."""
    return torch.equal(made.to(pixels), pixels)


def _maps(
    places: Places | None, relevance: Tensor | None, images: Sequence[Any], cells: int
) -> list[Tensor]:
    if places is None or relevance is None:
        return []
    sizes = []
    for number, image in enumerate(images):
        rows, columns = places.resolution(number)
        side = max(max(image.size) / cells, image.height / rows, image.width / columns)
        sizes.append((max(1, round(image.height / side)), max(1, round(image.width / side))))
    return places.maps(relevance, sizes)
