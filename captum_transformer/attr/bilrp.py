"""Eberle et al. (TPAMI 2020): BiLRP, which pairs of tokens make two inputs similar."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from captum_transformer.attr.conservative_lrp import ConservativeLRP
from captum_transformer.attr.directions import SMALLEST_RANK, along, drawn_directions, paired
from captum_transformer.attr.embeddings import (
    embedding_of,
    require_pairs,
    require_same_width,
)
from captum_transformer.attr.gradient_times_input import GradientTimesInput
from captum_transformer.attr.logged import logged
from captum_transformer.attr.shown import progress_of
from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.isolation import in_full_precision
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.numeric import accumulation_dtype, quotient

_Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


class PairRelevance(NamedTuple):
    """How much each pair of tokens makes two inputs similar.

    Attributes:
        relevance: the relevance of each token of one input with each of the other:
            ``(samples, N1, N2)``.
        similarity: the dot product, or cosine, of the two embeddings: ``(samples,)``.
        standard_error: the standard error of each entry of ``relevance``; zero unless it is
            estimated from some directions, see ``rank``.
    """

    relevance: Tensor
    similarity: Tensor
    standard_error: Tensor

    @property
    def delta(self) -> Tensor:
        """By how much conservation fails: the sum of relevance minus the similarity."""
        return self.relevance.sum((1, 2)) - self.similarity


class BiLRP:
    r"""The pairs of tokens, or patches, that make two inputs similar.

    For embeddings :math:`\phi(x)` and :math:`\phi'(x')` with the similarity
    :math:`\sum_k \phi_k \phi'_k`, the relevance of token :math:`i` of the one input together with
    token :math:`j` of the other is

    .. math:: R_{ij} = \sum_k R_i(\phi_k) \, R_j(\phi'_k)

    where :math:`R_i(\phi_k)` is the relevance of a token for one dimension of the embedding, by a
    method of gradient x input. It sums to the similarity if that method conserves relevance:
    biases, position embeddings and saturating activations take a share. Tokens that are masked in
    attention and in the pooling get zero.

    The model runs once for each input, and back once for each dimension, or ``rank`` times.

    Args:
        forward_func: a model, or any callable that runs one, which returns an embedding for each
            sample: ``(samples, dimensions)``.
        other: the tower of the other input, such as CLIP's for texts; None if it is the same.
        method: creates the method that explains each dimension from a forward function:
            ``ConservativeLRP`` (the default, with attention and norms held constant), ``AttnLRP``,
            ``functools.partial(ConservativeLRP, hold_mean=True)``, or another of gradient x input.
        normalize: explain the cosine of the two embeddings: relevance is divided by their lengths,
            as constants. For a model that divides by the length itself, such as one with a
            normalizing last module, the result is the same without it.
        rank: estimate the relevance from this number of directions instead of all dimensions of
            the embedding. They are orthonormal, and the first two span both embeddings, so that the
            sum is the similarity if the method conserves each dimension. The others are random,
            orthogonal to both and scaled so that each entry is unbiased; its
            standard error is returned as well.
        generator: draws these directions; None for one with a seed of zero in each call. The global
            random state is not used.

    Raises:
        ValueError: if the rank is too small.
        UnsupportedOperationError: if products of the method's relevance have no meaning.

    Reference:
        `Building and Interpreting Deep Similarity Models <https://arxiv.org/abs/2003.05431>`_.

    Example:
        >>> import torch, transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=32)
        >>> model = transformers.BertModel(config)
        >>> def sentence(ids, mask):
        ...     hidden = model(ids, attention_mask=mask).last_hidden_state
        ...     return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        >>> ids, others = torch.tensor([[7, 8, 9, 0]]), torch.tensor([[7, 5, 6, 8, 9]])
        >>> pairs = BiLRP(sentence, normalize=True).explain(ids, others, ids != 0, others != 0)
        >>> pairs.relevance.shape, pairs.similarity.shape
        (torch.Size([1, 4, 5]), torch.Size([1]))
        >>> pairs.relevance[0, 3]  # padding
        tensor([0., 0., 0., 0., 0.])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        other: Callable[..., Any] | None = None,
        *,
        method: Callable[[Callable[..., Any]], Any] = ConservativeLRP,
        normalize: bool = False,
        rank: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if rank is not None and rank < SMALLEST_RANK:
            raise ValueError(
                f"rank must be at least {SMALLEST_RANK}, the directions of the two embeddings and "
                f"two others to tell the error by, got {rank}."
            )
        self.forward_func = forward_func
        self.other = forward_func if other is None else other
        self.normalize = normalize
        self.rank = rank
        self.generator = generator
        self._towers = _conserving(method(self.forward_func)), _conserving(method(self.other))

    @logged
    def attribute(
        self,
        inputs: _Inputs,
        other_inputs: _Inputs,
        additional_forward_args: Any = None,
        other_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        other_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Attributes the similarity of two inputs to the pairs of their tokens.

        Args:
            inputs: the tensor whose tokens are explained, samples first: token ids, embeddings or
                pixels. A tensor is passed by position, a mapping with one entry, such as
                ``{"input_ids": ids}``, by name.
            other_inputs: the other input, with as many samples: the first is compared with the
                first, the second with the second.
            additional_forward_args: further arguments with ``inputs`` by position, such as a mask.
            other_forward_args: further arguments with ``other_inputs`` by position. They don't
                default to those with ``inputs``.
            additional_forward_kwargs: further arguments with ``inputs`` by name.
            other_forward_kwargs: further arguments with ``other_inputs`` by name.
            internal_batch_size: how many pairs to explain at a time; None for all at once.
            show_progress: show a progress bar for each group of pairs, with a step for each
                direction of each input.

        Returns:
            The relevance of each pair, ``(samples, N1, N2)``; for images, of the patches in
            row-major order.

        Raises:
            InvalidInputError: if the two sides have different numbers of samples, their
                embeddings different widths, or one of them several inputs.
            AmbiguousOutputError: if a model does not return one embedding for each sample.
            NoAttentionError: if the method needs attention and there is none.
        """
        return self.explain(
            inputs,
            other_inputs,
            additional_forward_args,
            other_forward_args,
            additional_forward_kwargs=additional_forward_kwargs,
            other_forward_kwargs=other_forward_kwargs,
            internal_batch_size=internal_batch_size,
            show_progress=show_progress,
        ).relevance

    def explain(
        self,
        inputs: _Inputs,
        other_inputs: _Inputs,
        additional_forward_args: Any = None,
        other_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        other_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> PairRelevance:
        """Like :meth:`attribute`, but also returns the similarity and the standard error.

        The arguments are those of :meth:`attribute`.
        """
        one = Arguments[Any](inputs, additional_forward_args, additional_forward_kwargs)
        two = Arguments[Any](other_inputs, other_forward_args, other_forward_kwargs)
        require_pairs(one, two)
        batches = (arguments.batches(internal_batch_size) for arguments in (one, two))
        generator = self.generator or torch.Generator().manual_seed(0)
        parts = [
            self._explained(a, b, generator, show=show_progress)
            for (_, a), (_, b) in zip(*batches, strict=True)
        ]
        return PairRelevance(*map(torch.cat, zip(*parts, strict=True)))

    def _explained(
        self,
        one: Arguments[Any],
        two: Arguments[Any],
        generator: torch.Generator,
        *,
        show: bool,
    ) -> PairRelevance:
        here, there = self._towers
        with _traced(here, one) as first, _traced(there, two) as second:
            embeddings = embedding_of(first, "inputs"), embedding_of(second, "other_inputs")
            require_same_width(*embeddings)
            width = embeddings[0].shape[1]
            count = width if self.rank is None else min(self.rank, width)
            if count < width:
                directions = drawn_directions(*embeddings, count, generator)
                first.then(lambda embedding: along(embedding, directions))
                second.then(lambda embedding: along(embedding, directions))
            with progress_of(self, 2 * count, show=show) as step:
                of_tokens = (
                    _token_relevance(here, first, count, step),
                    _token_relevance(there, second, count, step),
                )
            with in_full_precision(embeddings[0].device):
                similarity = (embeddings[0] * embeddings[1]).sum(1)
                relevance, error = paired(*of_tokens, width)
        if self.normalize:
            lengths = embeddings[0].norm(dim=1) * embeddings[1].norm(dim=1)
            similarity = quotient(similarity, lengths)
            relevance, error = (quotient(t, lengths[:, None, None]) for t in (relevance, error))
        return PairRelevance(relevance, similarity, error)


def _conserving(method: Any) -> GradientTimesInput:
    """Checks that products of a method's relevance are parts of a dot product, and returns it."""
    name = type(method).__name__
    if isinstance(method, GradientTimesInput) and method.adds_up_layers:
        raise UnsupportedOperationError(
            f"`method` makes a {name}, which adds up several layers, each with the whole value of "
            "a dimension, so that pairs would have a multiple of the dot product. Use LibraGrad."
        )
    if isinstance(method, GradientTimesInput):
        return method
    raise UnsupportedOperationError(
        f"`method` makes a {name}. BiLRP multiplies the relevance of tokens for each dimension of "
        "one embedding with that for the same dimension of the other, and sums over dimensions. "
        "This is a part of the dot product only if the relevance of a dimension is linear in its "
        "value, as for gradient x input with changed rules: ConservativeLRP, AttnLRP, or "
        "extend.GradientMethod with your own rules. Attention maps, and relevance that starts at "
        "one, show which tokens count, but not how much of the value comes from each."
    )


def _traced(
    method: GradientTimesInput, arguments: Arguments[Any]
) -> AbstractContextManager[TracedForward]:
    return method._traced(arguments)  # noqa: SLF001


def _token_relevance(
    method: GradientTimesInput, forward: TracedForward, count: int, step: Callable[[], object]
) -> Tensor:
    """Returns the relevance of each token for each output: ``(samples, outputs, tokens)``."""
    maps = []
    for output in range(count):
        maps.append(method._attribute_tokens(forward, output)[0])  # noqa: SLF001
        step()
    relevance = torch.stack(maps, 1)
    return relevance.flatten(2).to(accumulation_dtype(relevance.dtype))
