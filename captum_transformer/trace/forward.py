"""One traced forward pass of any model, ready to be explained for any target."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args, _select_targets
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.checkpoint import CheckpointError

from captum_transformer.errors import (
    AmbiguousOutputError,
    ExplanationError,
    InvalidInputError,
    InvalidTargetError,
    NoAttentionError,
)
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.functions import Kind
from captum_transformer.trace.isolation import explaining, modules_of, to_normal
from captum_transformer.trace.mode import ForwardRule, Trace
from captum_transformer.trace.streams import Streams
from captum_transformer.trace.tape import Value

NO_ATTENTION = (
    "No attention that the inputs reach was seen in the forward pass. Looked for: "
    "F.scaled_dot_product_attention, F.multi_head_attention_forward (nn.MultiheadAttention, "
    "nn.TransformerEncoder), and softmax over keys followed by a matrix product. If the model has "
    "attention, it runs where torch functions can't be seen: the flash-attn package, "
    "`flex_attention`, scripted or exported code, a custom `autograd.Function`, reentrant "
    "checkpointing, or the model's own `torch.no_grad()`. Switch to plain PyTorch attention, for "
    "instance `attn_implementation='sdpa'` in Transformers."
)


class TracedForward:
    """A forward pass with its tape, its attention calls and its output.

    Attributes:
        tape: every operation that the inputs reach.
        calls: the attention calls, in the order in which they ran.
        inputs: the tensors that are explained.
        values: the same on the tape.
        streams: the sets of tokens that the attention calls tie.
        edges: where they stand in the autograd graph; None for token ids.
        names: the inputs' names in the forward function's signature.
        output: what the model returned.
    """

    def __init__(
        self,
        trace: Trace,
        inputs: tuple[Tensor, ...],
        values: tuple[Value, ...],
        edges: tuple[GradientEdge | None, ...],
        names: tuple[str, ...],
    ) -> None:
        self._trace = trace
        self.tape = trace.tape
        self.calls = trace.calls
        self.inputs = inputs
        self.names = names
        self.values = values
        self.edges = edges
        self.output: Any = None
        self.streams = Streams(self.tape, dict(zip(names, values, strict=True)))

    def select(self, target: Any, *, mean_if_none: bool = False) -> tuple[Tensor, Value]:
        """The scalar of each sample that is explained: ``(samples,)``, and its value on the tape.

        Args:
            target: in any of Captum's forms.
            mean_if_none: without a target, explain the mean of all outputs of a sample.

        Raises:
            InvalidTargetError: if the target does not fit the output.
            AmbiguousOutputError: if the model returns no tensor or several that it fits.
            InvalidInputError: if the output does not depend on the inputs.
        """
        target = to_normal(target)
        with self._trace:
            output = _main_output(self.output)
            if target is None and mean_if_none and isinstance(output, Tensor):
                selected = output.reshape(output.shape[0], -1).mean(1)
            else:
                selected = _select(output, target)
            samples = self.inputs[0].shape[0]
            if len(selected) != samples:
                raise InvalidTargetError(
                    f"target {_short(target)} selects {len(selected)} scores, but there are "
                    f"{samples} samples: one score per sample is explained. The model's output "
                    "must have the samples along dimension 0."
                )
        value = self.tape.find(selected)
        if value is None:
            raise InvalidInputError(
                "The chosen output does not depend on any of the inputs in a differentiable way: "
                "there is nothing to explain. Pass the tensors that the prediction depends on as "
                "`inputs` (not as `additional_forward_args`)."
            )
        return selected, value

    def gradients(self, selected: Tensor, points: Sequence[GradientEdge]) -> list[Tensor | None]:
        """The gradient of the selected outputs at some points; None where they don't depend on."""
        if not points:
            return []
        try:
            gradients = torch.autograd.grad(
                selected.sum(),
                list(points),
                retain_graph=True,
                allow_unused=True,
            )
        except CheckpointError as reason:
            raise ExplanationError(
                "The model checkpoints activations, and what it recomputes in the backward pass is "
                "not what was traced. Switch checkpointing off while it is explained, for instance "
                "`model.set_grad_checkpointing(False)` in timm or "
                "`model.gradient_checkpointing_disable()` in Transformers."
            ) from reason
        return list(gradients)

    def require_attention(self) -> None:
        """Raises if no attention was seen, be it among tokens or among channels."""
        if not any(operation.attention is not None for operation in self.tape.operations):
            raise NoAttentionError(NO_ATTENTION)

    def layers(self) -> list[AttentionCall]:
        """The attention calls among tokens; an error if there are none."""
        self.require_attention()
        if not self.calls:
            raise NoAttentionError(
                "All attention in the forward pass is among channels, not among tokens: there are "
                "no maps from token to token. Use ConservativeLRP."
            )
        return self.calls


@contextmanager
def traced_forward(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional_forward_args: Any = None,
    *,
    keep: frozenset[Kind] = frozenset(),
    rule: ForwardRule | None = None,
) -> Iterator[TracedForward]:
    """Runs a model once under the trace; within the context its output can be explained.

    Args:
        forward_func: the model or any callable, as in Captum.
        inputs: the tensors to explain, samples first.
        additional_forward_args: further arguments of the model, as in Captum.
        keep: the kinds of operation whose operands are kept for the rules.
        rule: changes the gradient of some operations.
    """
    _validate(inputs)
    modules = modules_of(forward_func)
    names = {id(module): name or type(module).__name__ for name, module in modules}
    extra = _format_additional_forward_args(additional_forward_args) or ()
    with explaining(forward_func, modules, list(inputs)):
        trace = Trace(keep, names, rule)
        entered = tuple(_enter(tensor) for tensor in inputs)
        values = tuple(trace.enter_input(tensor) for tensor in entered)
        for value in values:
            lay_out_input(value, samples=inputs[0].shape[0])
        edges = tuple(get_gradient_edge(t) if t.requires_grad else None for t in entered)
        arguments = _argument_names(forward_func, len(inputs))
        forward = TracedForward(trace, inputs, values, edges, arguments)
        try:
            with trace:
                forward.output = forward_func(*entered, *to_normal(tuple(extra)))
            yield forward
        finally:
            forward.output = None
            trace.tape.clear()
            trace.calls.clear()


def lay_out_input(value: Value, samples: int) -> None:
    """Says where the samples and the features lie in an input."""
    shape = value.shape
    value.samples = Axis.of(shape, 0, samples)
    if len(shape) >= 3:
        value.features = (Axis.of(shape, 2 if len(shape) == 3 else 1),)


def _enter(tensor: Tensor) -> Tensor:
    """A copy for the model to work on, so that nothing reaches the user's own tensor."""
    copy = tensor.detach().clone()
    if not copy.is_floating_point():
        return copy
    return copy.requires_grad_().clone()


def _validate(inputs: tuple[Tensor, ...]) -> None:
    if not inputs:
        raise InvalidInputError(f"`inputs` must be a tensor or a tuple of tensors, got {inputs}.")
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            raise InvalidInputError(
                f"`inputs` must be a tensor or a tuple of tensors, got a {type(tensor).__name__}."
            )
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise InvalidInputError(
                f"An input of dtype {tensor.dtype} can't be explained: pass floating point values "
                "or integer token ids, and masks as `additional_forward_args`."
            )
        if tensor.ndim == 0 or tensor.shape[0] != inputs[0].shape[0] or not tensor.numel():
            shapes = [tuple(t.shape) for t in inputs]
            raise InvalidInputError(
                f"Inputs must be non-empty with the samples along dimension 0, as many in each: "
                f"got shapes {shapes}."
            )


def _argument_names(forward_func: Callable[..., Any], count: int) -> tuple[str, ...]:
    function = getattr(forward_func, "forward", forward_func)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(named[i] if i < len(named) else f"input_{i}" for i in range(count))


def _candidates(output: Any) -> list[tuple[str, Tensor]]:
    if isinstance(output, Mapping):
        items: list[tuple[str, Any]] = list(output.items())
    elif isinstance(output, (tuple, list)):
        items = [(f"[{i}]", item) for i, item in enumerate(output)]
    else:
        items = []
    return [(k, v) for k, v in items if isinstance(v, Tensor) and v.is_floating_point() and v.ndim]


def _main_output(output: Any) -> Any:
    """The logits of an output that has such; any other output as it is."""
    logits = output.get("logits") if isinstance(output, Mapping) else None
    return logits if isinstance(logits, Tensor) else output


def _select(output: Any, target: Any) -> Tensor:
    if isinstance(output, Tensor):
        return _select_from(output, target)
    candidates = _candidates(output)
    fits, error = [], None
    for name, tensor in candidates:
        try:
            fits.append((name, _select_from(tensor, target)))
        except InvalidTargetError as reason:
            error = reason
    if len(fits) == 1:
        return fits[0][1]
    if not fits and error is not None:
        raise error
    found = (
        ", ".join(f"{name}: {tuple(t.shape)}" for name, t in candidates) or type(output).__name__
    )
    raise AmbiguousOutputError(
        f"The model returned {found}; target {target!r} fits {len(fits)} of them and exactly one "
        "is needed. Pass a function that returns the tensor to explain, for instance "
        "`lambda x: model(x).logits`."
    )


def _select_from(output: Tensor, target: Any) -> Tensor:
    if isinstance(target, Tensor) and target.device != output.device:
        target = target.to(output.device)
    try:
        selected = _select_targets(output, target)
    except (AssertionError, IndexError, RuntimeError, TypeError) as reason:
        raise InvalidTargetError(
            f"target {_short(target)} does not fit the model's output of shape "
            f"{tuple(output.shape)}: {reason}. Give one class index for all samples, a tensor or "
            "list with one per sample, or tuples of indices for outputs of more dimensions."
        ) from reason
    if selected.ndim > 1 and selected[0].numel() > 1:
        raise InvalidTargetError(
            f"target {_short(target)} leaves {tuple(selected.shape[1:])} values per sample of the "
            f"output of shape {tuple(output.shape)}; one is explained at a time. "
            + ("Give a target." if target is None else "Give a tuple of indices.")
        )
    return selected.reshape(-1)


def _short(target: Any) -> str:
    if isinstance(target, Tensor) and target.numel() > 8:
        return f"of shape {tuple(target.shape)}"
    text = repr(target)
    return text if len(text) < 80 else text[:77] + "..."
