"""The methods in Captum's tool for language models, with its texts, tokenizers and plots."""

from typing import Any

import torch.nn.functional as F
from captum.attr import GradientAttribution, LLMGradientAttribution
from captum.attr._utils.interpretable_input import InterpretableInput
from torch import Tensor

from captum_transformer.attr.transformer_method import TransformerMethod


class LLMTransformerAttribution(LLMGradientAttribution):
    """Captum's ``LLMGradientAttribution`` for the methods of this package.

    Captum's own class takes layer methods only, those on its list. This one takes ours and is used
    in the same way: the log-probability of each generated token is attributed to the tokens of the
    prompt. Captum runs the model once for each token;
    :meth:`~captum_transformer.TransformerMethod.attribute_generated` runs it once for all, and
    explains logits.

    Args:
        attr_method: a method whose ``forward_func`` is the language model itself.
        tokenizer: the model's tokenizer.

    Example:
        >>> import torch, transformers
        >>> from captum.attr import TextTokenInput
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
    """

    SUPPORTED_METHODS = (TransformerMethod,)  # type: ignore[assignment]

    def __init__(self, attr_method: TransformerMethod, tokenizer: Any) -> None:
        super().__init__(attr_method, tokenizer)
        # Captum has copied the method and replaced its forward function.
        self.attr_method = _Prompt(self.attr_method)


class _Prompt(GradientAttribution):
    """Attributes to the ids of a prompt, in the form in which a layer method does to embeddings.

    Captum hands over a tensor that says which tokens are there, and cuts off what it takes for the
    relevance of the tokens generated before.
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
        """Relevance ``(1, tokens so far, 1)``, zero for those that were generated.

        Args:
            inputs: Captum's tensor of tokens that are there.
            additional_forward_args: the text, the generated ids, and which of them is explained.
            **options: of the method's own ``attribute``.
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
        """The ids as they are."""
        return ids
