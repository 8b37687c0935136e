"""The methods in Captum's tool for language models, with its texts, tokenizers and plots."""

from typing import Any

import captum.attr
import torch.nn.functional as F
from captum.attr import (
    GradientAttribution,
    LLMAttributionResult,
    LLMGradientAttribution,
    TextTemplateInput,
    TextTokenInput,
)
from captum.attr._utils.interpretable_input import InterpretableInput
from torch import Tensor

from captum_transformer.attr.llm_images import of_segments
from captum_transformer.attr.transformer_method import TransformerMethod
from captum_transformer.errors import InvalidInputError
from captum_transformer.groups import label_tokens, sum_by_group
from captum_transformer.templates import mark, places_of

__all__ = ["LLMTransformerAttribution"]

# Captum has images since version 0.9.
_IMAGES: Any = getattr(captum.attr, "ImageMaskInput", ())
_INPUTS: Any = (TextTokenInput, TextTemplateInput, *([_IMAGES] if _IMAGES else []))


class LLMTransformerAttribution(LLMGradientAttribution):
    """Captum's ``LLMGradientAttribution`` for the methods of this package.

    Captum's own class only supports the layer methods on its list. This one takes ours and is used
    in the same way: the log-probability of each generated token is attributed to the tokens of the
    prompt, or to the words in a template's slots (``TextTemplateInput``): each has the
    sum over its tokens, and the template's own words are left out. For an image with segments
    (``ImageMaskInput``, whose ``processor_fn`` returns all inputs of a vision-language model), each
    segment has the sum over its pixels. Captum runs the model once for each token of a text;
    :meth:`~captum_transformer.attr.transformer_method.TransformerMethod.attribute_generated` runs
    it once for all, and explains logits.

    Args:
        attr_method: a method whose ``forward_func`` is the language model itself.
        tokenizer: the model's tokenizer.

    Example:
        >>> import torch, transformers
        >>> from captum.attr import TextTemplateInput, TextTokenInput
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from captum_transformer import GenericAttentionRelevance
        >>> words = "the cat sat on mat".split()
        >>> vocabulary = {word: index for index, word in enumerate(words)}
        >>> words = Tokenizer(models.WordLevel(vocabulary, unk_token="the"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
        >>> config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=5)
        >>> model = transformers.GPT2LMHeadModel(config)
        >>> llm = LLMTransformerAttribution(GenericAttentionRelevance(model), tokenizer)
        >>> text = TextTokenInput("the cat sat", tokenizer)
        >>> llm.attribute(text, target=torch.tensor([3, 0, 4])).token_attr.shape
        torch.Size([3, 3])
        >>> text = TextTemplateInput("the {} {}", ["cat", "sat"])
        >>> llm.attribute(text, target=torch.tensor([3, 0, 4])).token_attr.shape
        torch.Size([3, 2])
    """

    SUPPORTED_METHODS = (TransformerMethod,)  # type: ignore[assignment]
    SUPPORTED_INPUTS = _INPUTS

    def __init__(self, attr_method: TransformerMethod, tokenizer: Any) -> None:
        super().__init__(attr_method, tokenizer)
        self._method = attr_method
        # Captum has copied the method and replaced its forward function.
        self.attr_method = _Prompt(self.attr_method)

    def attribute(
        self,
        inp: InterpretableInput,
        target: str | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LLMAttributionResult:
        """Attributes generated or given tokens to a text.

        Args:
            inp: the text, as ``TextTokenInput`` or ``TextTemplateInput``, or an ``ImageMaskInput``.
            target: as in Captum: the text or ids to explain; None to let the model generate it.
            gen_args: arguments of ``generate``.
            **kwargs: arguments of the method's own ``attribute``, for texts.

        Raises:
            InvalidInputError: if a template changes the words that it is filled with, or the
                tokenizer has no offsets.
        """
        if isinstance(inp, _IMAGES):
            tokens = self._get_target_tokens(inp, target, gen_args=gen_args)
            of_image = of_segments(self._method, inp, tokens)
            return LLMAttributionResult(
                seq_attr=of_image.sum(0),
                token_attr=of_image,
                input_tokens=inp.values,
                output_tokens=[self.tokenizer.decode(token) for token in tokens.unsqueeze(1)],
                inp=inp,
            )
        if not isinstance(inp, TextTemplateInput):
            return super().attribute(inp, target, gen_args, **kwargs)
        text = inp.to_model_input()
        result = super().attribute(TextTokenInput(text, self.tokenizer), target, gen_args, **kwargs)
        token_attr = inp.format_attr(_of_values(inp, text, self.tokenizer, result.token_attr))
        return LLMAttributionResult(
            seq_attr=token_attr.sum(0),
            token_attr=token_attr,
            input_tokens=inp.values,
            output_tokens=result.output_tokens,
        )


def _of_values(text_input: TextTemplateInput, text: str, tokenizer: Any, of_tokens: Any) -> Tensor:
    """Returns the relevance of a template's values, or of the groups that they are in."""
    values = text_input.values
    keys = text_input.dict_keys
    marks = [mark(number) for number in range(len(values))]
    pattern = (
        text_input.format_fn(**dict(zip(keys, marks, strict=True)))
        if keys
        else (text_input.format_fn(*marks))
    )
    places = places_of(text, pattern, values)
    coded = tokenizer(text, return_offsets_mapping=True) if tokenizer.is_fast else {}
    if places is None or "offset_mapping" not in coded:
        raise InvalidInputError(
            "Where the template's values stand in the text is not known: "
            + (
                "the template changes them. Fill in what is to stand there."
                if places is None
                else "the tokenizer has no offsets. Use a fast one."
            )
        )
    spans: dict[str, list[tuple[int, int]]] = {}
    for number, start, end in places:
        if end > start:
            spans.setdefault(str(number), []).append((start, end))
    names, sums, _ = sum_by_group(of_tokens, label_tokens(coded["offset_mapping"], spans, rest=""))
    found = sums.new_zeros(len(sums), text_input.n_itp_features)
    for name, column in zip(names, sums.unbind(1), strict=True):
        if name:
            number = int(name)
            found[:, number if text_input.mask is None else text_input.formatted_mask[number]] += (
                column
            )
    return found


class _Prompt(GradientAttribution):
    """Attributes to the ids of a prompt, with the interface of a layer method for embeddings.

    Captum passes a tensor that says which tokens are present, and cuts off the entries that it
    expects for tokens generated before.
    """

    def __init__(self, method: GradientAttribution) -> None:
        super().__init__(method.forward_func)
        self._method = method

    def attribute(
        self,
        inputs: Tensor,
        additional_forward_args: tuple[InterpretableInput, Tensor, int],
        **options: Any,
    ) -> Tensor:
        """Returns the relevance ``(1, tokens so far, 1)``, zero for generated tokens.

        Args:
            inputs: Captum's tensor that says which tokens are present.
            additional_forward_args: the text, the generated ids, and the index of the explained id.
            **options: arguments of the method's own ``attribute``.
        """
        text, tokens, index = additional_forward_args
        ids = text.to_model_input().to(inputs.device)
        relevance: Tensor = self._method.attribute(
            ids, additional_forward_args=(_Ids(), tokens, index), **options
        )
        return F.pad(relevance, (0, index)).unsqueeze(-1)


class _Ids:
    """An input whose interpretable form is the ids themselves."""

    def to_model_input(self, ids: Tensor) -> Tensor:
        """Returns the ids unchanged."""
        return ids
