"""The part of a forward pass that a score depends on; all other branches are ignored."""

import warnings
from collections.abc import Iterable, Mapping

import torch

from captum_transformer.errors import NoAttentionError
from captum_transformer.trace.attention import AttentionCall, mixes_experts
from captum_transformer.trace.mixing import named, of_unknown_weights, unread_mixing
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.streams import Streams
from captum_transformer.trace.value import Value

LINEAR_ATTENTION = (
    "No attention that can be read was seen in the forward pass, but other operations that mix "
    "tokens, as in linear attention, sliding windows in chunks, attention whose queries and heads "
    "can't be told apart, and Fourier transforms: {products}. "
)
NO_ATTENTION = (
    "No attention that the inputs reach was seen in the forward pass. Looked for: "
    "F.scaled_dot_product_attention, flex_attention, F.multi_head_attention_forward "
    "(nn.MultiheadAttention, nn.TransformerEncoder), and softmax over keys followed by a matrix "
    "product. If the model has attention, it is cut off from the inputs, by the model's own "
    "`torch.no_grad()` or `detach()` or by a kernel that has no derivative: switch to plain "
    "PyTorch attention, for instance `attn_implementation='sdpa'` in Transformers. A model that "
    "has none, such as a convolutional network, can be explained by ConservativeLRP with "
    "`attention_rule=False`; recurrent layers (`nn.LSTM`, `nn.GRU`) can't, unless they are written "
    "in torch functions."
)
BESIDE = (
    "The chosen output doesn't depend on attention, although the forward pass has some. Choose an "
    "output after the attention layers, or use ConservativeLRP with `attention_rule=False`."
)


WEIGHTS_UNKNOWN = (
    "The model has attention whose weights are held constant, and other products of signals that "
    "may mix tokens, as in linear attention and state space models: {products}. Which of their "
    "factors are weights is not known, so all of them count, as with `attention_rule=False`."
)

ROUNDING = (
    "The model computes in {dtype}, and what this method divides by may nearly cancel, so that it "
    "magnifies rounding errors: maps of small models differed by up to 1.4 times their norm. "
    "Explain in "
    "float32, as with `model.float()`, or use GenericAttentionRelevance, AttnLRP or "
    "ConservativeLRP without gamma, which differed by less than .04."
)


class History:
    """The operations that lead to a score, and the attention calls and streams among them.

    Args:
        operations: these operations, in order.
        inputs: the inputs of the forward pass by name.
        beside: whether the forward pass has attention that the score doesn't depend on.

    Attributes:
        operations: these operations, in order.
        calls: the attention calls among tokens, in order.
        channel_calls: the attention calls among channels.
    """

    def __init__(
        self, operations: Iterable[Operation], inputs: Mapping[str, Value], *, beside: bool
    ) -> None:
        self.operations = list(operations)
        attention = [o.attention for o in self.operations if o.attention is not None]
        self.calls: list[AttentionCall] = [c for c in attention if not c.among_channels]
        self.channel_calls: list[AttentionCall] = [
            c for c in attention if c.among_channels and not mixes_experts(c.operation)
        ]
        self._streams = Streams(inputs)
        self._unread = self.operations.copy()
        self._is_warned_of = False
        self._beside = beside

    def go_on(self, behind: Iterable[Operation]) -> None:
        """Adds the operations that lead from the history to a score."""
        self._unread += behind

    @property
    def streams(self) -> Streams:
        """The sets of tokens that the attention calls connect."""
        self._streams.read(self._unread)
        self._unread.clear()
        return self._streams

    def require_attention(self, *, weights: bool = False) -> None:
        """Raises an error if there is nothing that a rule for attention applies to.

        Such a rule applies to attention among tokens or among channels, and to other operations
        that mix tokens.

        Args:
            weights: whether to require known weights of tokens, which linear attention may lack.
                Warns if only some of the weights are known.

        Raises:
            NoAttentionError: if there is no such operation.
        """
        calls = self.calls or self.channel_calls
        if calls and not weights:
            return
        mixing = unread_mixing(self.operations)
        unknown = of_unknown_weights(self.operations) if mixing else []
        if not calls and not mixing:
            raise NoAttentionError(BESIDE if self._beside else NO_ATTENTION)
        if weights and unknown and (calls or len(unknown) < len(mixing)):
            self.warn_once(WEIGHTS_UNKNOWN.format(products=listed(named(unknown))))
        elif weights and unknown:
            raise NoAttentionError(
                LINEAR_ATTENTION.format(products=listed(named(mixing)))
                + "Which of their factors are the weights of tokens is not known, so these can't "
                "be held constant. Use AttnLRP, or TransformerAttribution with "
                "`propagate_to_input=True`; with `attention_rule=False` all factors count."
            )

    def warn_once(self, message: str) -> None:
        """Issues a warning, unless this history has issued one before."""
        if not self._is_warned_of:
            self._is_warned_of = True
            warnings.warn(message, UserWarning, stacklevel=1)

    def warn_of_rounding(self, dtype: torch.dtype) -> None:
        """Warns that a method magnifies rounding errors, if the dtype has less than 32 bits."""
        if torch.finfo(dtype).bits < 32:
            self.warn_once(ROUNDING.format(dtype=dtype))

    def layers(self) -> list[AttentionCall]:
        """Returns the attention calls among tokens.

        Raises:
            NoAttentionError: if there are none.
        """
        if self.calls:
            return self.calls
        self.require_attention()
        if self.channel_calls:
            seen = (
                "All attention that the score depends on is among channels, not among tokens: "
                "there are "
            )
        else:
            products = listed(named(unread_mixing(self.operations)))
            seen = LINEAR_ATTENTION.format(products=products) + "There are "
        raise NoAttentionError(
            f"{seen}no maps from token to token, and no tokens to sum over. Use `attribute` of "
            "ConservativeLRP, AttnLRP, or TransformerAttribution with `propagate_to_input=True`."
        )


def leading_to(values: Iterable[Value], start: int = 0) -> list[Operation]:
    """Returns the operations behind some values, in order, including those on learned queries.

    Args:
        values: the values.
        start: the position on the tape before which operations are ignored.
    """
    found: dict[int, Operation] = {}
    stack = list(values)
    while stack:
        operation = stack.pop().operation
        if operation is not None and start <= operation.index and operation.index not in found:
            found[operation.index] = operation
            stack.extend(value for _, value in operation.carried())
    return [found[index] for index in sorted(found)]


def listed(names: Iterable[str]) -> str:
    """Returns the first three distinct names as a comma-separated string."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
