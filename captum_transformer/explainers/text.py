"""Explains texts by the relevance of their words."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from captum_transformer.attr.shown import progress_of
from captum_transformer.calling.isolation import explaining, modules_of
from captum_transformer.explainers.classes import ClassNames, Names
from captum_transformer.explainers.coding import Text, check_tokenizer, code, longest_text
from captum_transformer.explainers.defaults import TEXT
from captum_transformer.explainers.device import device_of
from captum_transformer.explainers.explained import Explained
from captum_transformer.explainers.explained_text import ExplainedText
from captum_transformer.explainers.readout import Activation, activation_of, with_targets
from captum_transformer.explainers.similarity import cosine, explained_pair
from captum_transformer.explainers.tasks import (
    Question,
    Task,
    check_task,
    readout_of,
    task_of,
)
from captum_transformer.explainers.words import Unit, Words

Method: TypeAlias = Callable[[Callable[..., Any]], Any]
"""Creates the method from a forward function."""


class TextExplainer:
    """Explains a model's output for a text, by the words of the text.

    The task of a model is taken from Transformers' auto classes: text classification, token
    classification, question answering, or language modelling. Any other callable that takes the
    tokenizer's output by name, and returns a score for each class, is a classifier.

    Args:
        model: the model.
        tokenizer: its tokenizer, a fast one.
        method: creates the method from a forward function: a class of this package, or for example
            ``lambda forward: AttnLRP(forward, gamma=0.05)``. None: ``AttnLRP``, and for similarity
            ``BiLRP`` of the cosine.
        names: the names of the classes, if the model's configuration has others or none.
        task: ``"class"``, ``"words"``, ``"answer"``, ``"next word"`` or ``"masked word"``; None for
            the task given by Transformers' auto classes. ``"similarity"`` for a model or function
            that returns an embedding of a text, ``(1, dimensions)``.
        activation: ``"softmax"`` or ``"sigmoid"``, which converts a classifier's scores to
            probabilities; None for the one in the model's configuration.

    Raises:
        InvalidInputError: if the tokenizer is not a fast one or has no vocabulary, the task
            doesn't exist, or the model's task is ambiguous.

    Example:
        >>> import transformers
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from captum_transformer.explainers import TextExplainer
        >>> vocabulary = {w: i for i, w in enumerate("? [PAD] a very fine film".split())}
        >>> words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
        >>> config = transformers.BertConfig(
        ...     vocab_size=6, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=16, id2label={0: "negative", 1: "positive"})
        >>> model = transformers.BertForSequenceClassification(config)
        >>> explained = TextExplainer(model, tokenizer)("a very fine film", target="positive")
        >>> explained.words, tuple(explained.relevance.shape), explained.label
        (['a', 'very', 'fine', 'film'], (4,), 'positive (1)')
    """

    def __init__(
        self,
        model: Callable[..., Any],
        tokenizer: Any,
        method: Method | None = None,
        *,
        names: Names | None = None,
        task: Task | None = None,
        activation: Activation | None = None,
    ) -> None:
        check_tokenizer(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.method: Method = method or (cosine if task == "similarity" else TEXT.method)
        self.names = ClassNames(model, names)
        self.task: Task = task_of(model) if task is None else check_task(task)
        self.activation = activation or activation_of(model)

    def __call__(
        self,
        text: Text | list[Text],
        target: Any = None,
        *,
        rather_than: Any = None,
        unit: Unit = "word",
        show_progress: bool = False,
    ) -> Any:
        """Explains a text.

        Args:
            text: the text; a tuple of two for models that take pairs, such as a question and the
                text with its answer; or a list of several to explain one after another.
            target: what is explained; None for what the model predicts. The number or the name of a
                class; of a model that classifies words, ``"Paris"`` or ``("Paris", "B-LOC")``, a
                piece of the text that occurs once; an answer as it is written in the text; the next
                or the masked word. For a list of texts, a list with one for each.
            rather_than: another class or word: the difference of the two scores is explained.
            unit: the unit that relevance is summed by: ``"token"``, ``"word"``, ``"sentence"``,
                ``"line"`` or ``"paragraph"``.
            show_progress: show a progress bar over several texts.

        Returns:
            An :class:`ExplainedText`, or for similarity an :class:`ExplainedPair`; a list of them
            for a list of texts.

        Raises:
            InvalidInputError: if it is not a text, is empty, or is longer than the model allows.
            InvalidTargetError: if there is no such target.
            AmbiguousOutputError: if the output has no scores in the task's form.
        """
        if not isinstance(text, list):
            return self._explain(text, target, rather_than, unit)
        pairs = with_targets(text, target, "texts")
        found = []
        with progress_of(self, len(pairs), show=show_progress) as step:
            for each, of_each in pairs:
                found.append(self._explain(each, of_each, rather_than, unit))
                step()
        return found

    def _explain(self, text: Text, target: Any, rather_than: Any, unit: Unit) -> Explained:
        longest, device = longest_text(self.model, self.tokenizer), device_of(self.model)
        if self.task == "similarity":
            of_pairs = self.method(self.model)
            return explained_pair(
                text, target, rather_than, of_pairs, self.tokenizer,
                longest=longest, device=device, unit=unit,
            )  # fmt: skip
        coded, inputs = code(text, self.tokenizer, longest)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        with explaining(modules_of(self.model), list(inputs.values())), torch.no_grad():
            output = self.model(**inputs)
        readout = readout_of(
            self.task, Question(output, coded, target, rather_than, self.names, self.activation)
        )
        ids = inputs.pop("input_ids")
        method = self.method(
            lambda input_ids, **context: readout.read(self.model(input_ids=input_ids, **context))
        )
        (of_tokens,) = method.attribute(ids, additional_forward_kwargs=inputs)
        words = Words(coded, unit)
        return ExplainedText(
            readout.label,
            readout.number,
            readout.score,
            readout.probability,
            target is None,
            type(method).__name__,
            words.labels,
            words.sums(of_tokens.cpu()),
            coded.tokens,
            of_tokens,
            words.special,
        )
