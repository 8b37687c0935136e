"""Describes what the trace sees of a model: its attention, and how residuals are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum_transformer.calling.arguments import Arguments
from captum_transformer.errors import ExplanationError
from captum_transformer.rules.flow.beside import beside_skips
from captum_transformer.rules.flow.sources import Junction, Sources
from captum_transformer.trace.attention import AttentionCall, FusedAttention
from captum_transformer.trace.forward import TracedForward, traced_forward
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.mixing import named, unread_mixing
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.pooling import read_from
from captum_transformer.trace.tokens import token_value
from captum_transformer.trace.value import Value

__all__ = ["Addition", "Attention", "Description", "describe"]


@dataclass(frozen=True)
class Attention:
    """An attention call.

    Attributes:
        layer: its index among the calls, as in ``layer`` and ``start_layer`` for a model with one
            tower; None for attention among channels.
        module: the name of the module that called it.
        shape: the shape of its probabilities: ``(..., queries, keys)``.
        queries: the name of the tokens that attend; empty among channels.
        keys: the name of the tokens that they attend to; empty among channels.
        fused: whether it is a fused call; otherwise softmax and product were written out.
    """

    layer: int | None
    module: str
    shape: tuple[int, ...]
    queries: str
    keys: str
    fused: bool


@dataclass(frozen=True)
class Addition:
    """An addition of two signals that have attended to different things.

    Attributes:
        after: the layers of the attention calls that its branch adds.
        read_as: ``"skip and branch"``, ``"projected skip and branch"``, or ``"parallel branches"``,
            where a branch without attention gets zero, such as an MLP parallel to attention.
        shape: the shape of the sum.
    """

    after: tuple[int, ...]
    read_as: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """The trace's description of a model; it prints as a table.

    Attributes:
        inputs: the shape of each input, by its name.
        attention: the attention calls, in the order in which they ran.
        additions: the additions of attention outputs to other signals.
        pooled: whether the outputs are read from several pooled tokens, as in a mean
            over all patches; otherwise they are read from single tokens, such as a class token.
        unread: operations that mix tokens and aren't recognised as attention, by name and
            shapes. Methods that need maps refuse a branch that has one.
        beside_skips: operations that mix tokens in a branch parallel to a skip, such as a
            convolution as position encoding, by name and shapes. Methods that need maps give the
            whole share to the skip and do not trace the branch.
        grids: the numbers of rows and columns of equal patches that a convolution cuts each image
            into, by the input's name; inputs for which this isn't known are missing.
    """

    inputs: dict[str, tuple[int, ...]]
    attention: tuple[Attention, ...]
    additions: tuple[Addition, ...]
    pooled: bool
    unread: tuple[str, ...]
    beside_skips: tuple[str, ...] = ()
    grids: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Returns one line for each input, attention call, addition and so on."""
        lines = [f"input {name}: {shape}" for name, shape in self.inputs.items()]
        for call in self.attention:
            place = "channels" if call.layer is None else f"layer {call.layer}"
            between = (
                call.queries if call.queries == call.keys else f"{call.queries} to {call.keys}"
            )
            kind = "fused" if call.fused else "written out"
            lines.append(f"{place}: {call.module}, {call.shape}, {between or 'features'}, {kind}")
        for addition in self.additions:
            after = ", ".join(map(str, addition.after))
            lines.append(f"addition after {after}: {addition.read_as}, {addition.shape}")
        if self.pooled:
            lines.append("read from: pooled tokens")
        lines += [f"not read: {operation}" for operation in self.unread]
        lines += [f"not followed, beside a skip: {operation}" for operation in self.beside_skips]
        if not self.attention:
            lines.append("no attention was seen")
        return "\n".join(lines)


def describe(
    model: Callable[..., Any],
    inputs: Any,
    additional_forward_args: Any = None,
    *,
    additional_forward_kwargs: Mapping[str, Any] | None = None,
) -> Description:
    """Describes how the trace reads a model in one call: the first thing to look at if in doubt.

    Args:
        model: the model or any callable that runs one.
        inputs: as in :meth:`TransformerMethod.attribute`.
        additional_forward_args: further arguments by position, as in Captum.
        additional_forward_kwargs: further arguments by name.

    Returns:
        The description; ``print`` it.

    Raises:
        InvalidInputError: if the inputs can't be explained as given.
        UnseenOperationError: if the inputs act through something that can't be traced.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> print(describe(model, torch.rand(1, 3, 32, 32)))
        input x: (1, 3, 32, 32)
        layer 0: blocks.0.attn, (1, 3, 5, 5), x, fused
        addition after 0: skip and branch, (1, 5, 192)
    """
    arguments = Arguments[Any](inputs, additional_forward_args, additional_forward_kwargs)
    with traced_forward(model, arguments) as forward:
        return Description(
            {name: tuple(value.shape) for name, value in _named(forward).items()},
            tuple(_attention(forward)),
            tuple(_additions(forward)),
            bool(read_from(forward.tape.operations, forward.calls, len(forward.inputs[0]))),
            tuple(named(unread_mixing(forward.tape.operations))),
            tuple(named(beside_skips(forward.tape.operations, forward.tape.derived(Sources)))),
            _grids(forward),
        )


def _named(forward: TracedForward) -> dict[str, Value]:
    return dict(zip(forward.names, forward.values, strict=True))


def _grids(forward: TracedForward) -> dict[str, tuple[int, int]]:
    found = {}
    for name, value in _named(forward).items():
        try:
            tokens = token_value(value, forward.whole)
        # The input is not turned into tokens.
        except ExplanationError:
            continue
        made_by = tokens.operation
        # Samples, features, rows and columns.
        if made_by is None or made_by.kind is not Kind.CONV or len(tokens.shape) != 4:
            continue
        (_, image), *_ = made_by.traced()
        (height, width), (rows, columns) = image.shape[2:], tokens.shape[2:]
        # An image that the model has padded or cropped is not cut at equal distances.
        if image.shape.numel() == value.shape.numel() and not (height % rows or width % columns):
            found[name] = (rows, columns)
    return found


def _attention(forward: TracedForward) -> list[Attention]:
    streams = forward.whole.streams
    pairs = dict(zip(streams.calls, streams.pairs(), strict=True))
    found = []
    for operation in forward.tape.operations:
        call: AttentionCall | None = operation.attention
        if call is None:
            continue
        queries, keys = pairs.get(call, ("", ""))
        layer = None if call.among_channels else call.layer
        fused = isinstance(call, FusedAttention)
        found.append(Attention(layer, call.module, call.map_shape(), queries, keys, fused))
    return found


def _additions(forward: TracedForward) -> list[Addition]:
    sources = forward.tape.derived(Sources)
    found = []
    for operation in forward.tape.operations:
        junction = sources.junction(operation)
        if operation.kind not in (Kind.ADD, Kind.SUB) or junction is None:
            continue
        left, right = (value for _, value in operation.traced())
        added = [left.attention & ~right.attention, right.attention & ~left.attention]
        if any(added):
            layers = tuple(c.layer for c in forward.calls if (added[0] | added[1]) >> c.layer & 1)
            read_as = _read_as(left, right, junction)
            found.append(Addition(layers, read_as, tuple(_output(operation).shape)))
    return found


def _read_as(left: Value, right: Value, junction: Junction) -> str:
    if left.descends_from(right.origin) or right.descends_from(left.origin):
        return "skip and branch"
    if left.attention & ~right.attention and right.attention & ~left.attention:
        return "parallel branches"
    return "projected skip and branch" if all(junction.whole) else "parallel branches"


def _output(operation: Operation) -> Value:
    output = operation.outputs[0]
    if output is None:
        raise RuntimeError("an addition is only recorded if the inputs reach its output")
    return output
