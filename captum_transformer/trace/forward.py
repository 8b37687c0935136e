"""A traced forward pass of any model, which can be explained for any target."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from captum_transformer.calling.arguments import Arguments
from captum_transformer.calling.copies import copied
from captum_transformer.calling.isolation import explaining, modules_of
from captum_transformer.calling.layers import ChosenLayer
from captum_transformer.calling.refusals import (
    called,
    reads_sharded,
    refusing_scripted,
    sharded_parameter,
)
from captum_transformer.trace.applied import APPLIED
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.batch import Batch
from captum_transformer.trace.combined import Combined
from captum_transformer.trace.derivatives import derivatives
from captum_transformer.trace.history import History, leading_to
from captum_transformer.trace.influence import belongs_to_samples, require_apart
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.layers import InnerTensor, WatchedLayers
from captum_transformer.trace.lost_gradients import refuse_steps
from captum_transformer.trace.mode import Trace
from captum_transformer.trace.packages import describe_packages
from captum_transformer.trace.recorder import ForwardRules, Recorder
from captum_transformer.trace.scores import Scores
from captum_transformer.trace.seams import GradientsInOrder, seams
from captum_transformer.trace.value import Value


class TracedForward:
    """A forward pass with its tape, its attention calls and its output.

    Attributes:
        tape: the operations that depend on the inputs.
        calls: the attention calls, in the order in which they ran.
        inputs: the tensors that are explained.
        values: the values of the inputs on the tape.
        edges: the positions of the inputs in the autograd graph; None for token ids.
        names: the names of the inputs, as given or from the forward function's signature.
        layers: the tensors of the watched layers.
        output: the output of the model.
        for_all_targets: what rules keep that is the same for all targets; None to keep nothing.
    """

    def __init__(
        self,
        trace: Trace,
        inputs: tuple[Tensor, ...],
        values: tuple[Value, ...],
        edges: tuple[GradientEdge | None, ...],
        names: tuple[str, ...],
        again: Callable[[], AbstractContextManager["TracedForward"]],
    ) -> None:
        self._trace = trace
        self._again = again
        self._autocast = _autocast(inputs[0].device.type)
        self.tape = trace.tape
        self.calls = trace.calls
        self.inputs = inputs
        self.names = names
        self.values = values
        self.edges = edges
        self.layers: list[tuple[InnerTensor, ...]] = []
        self.output: Any = None
        self.for_all_targets: dict[Any, Tensor] | None = None
        self._named = dict(zip(names, values, strict=True))
        self._scores = Scores(trace, self._named, len(inputs[0]))
        self._histories: dict[frozenset[Value], History] = {}
        self._of_scores: dict[Value, History] = {}
        self._selected: tuple[Any, bool, tuple[Tensor, Value]] | None = None
        self._watched: Sequence[GradientEdge] = ()
        self._slopes: Sequence[Tensor | None] | None = None
        self._in_order: GradientsInOrder | None = None
        self._then: list[Callable[[Any], Any]] = []
        self._end = 0

    def clear(self) -> None:
        """Releases everything that the model has computed."""
        if self._in_order is not None:
            self._in_order.leaving = None  # the callback may refer to it
        self.output = self._in_order = self.for_all_targets = None
        self.layers.clear()

    def has_rule_for(self, kind: Kind) -> bool:
        """Whether the method has a rule that changes the gradient of operations of a kind."""
        return kind in self._trace.rules

    def keep_for_all_targets(self) -> None:
        """Keeps what rules compute that is the same for all targets, unless blocks run again."""
        if not self._trace.blocks.places():
            self.for_all_targets = {}

    def then(self, function: Callable[[Any], Any]) -> None:
        """Applies a function to the output, under the trace; the result becomes the output."""
        with self._trace:
            self.output = function(self.output)
        self._then.append(function)
        self.finish()

    def finish(self) -> None:
        """Marks the forward pass as complete: all operations up to the output are on the tape."""
        self._end = len(self.tape.operations)
        self._of_scores.clear()
        self._scores.combined.clear()
        self._trace.blocks.end()

    def select(self, target: Any, *, mean_if_none: bool = False) -> tuple[Tensor, Value]:
        """Returns the explained score of each sample, ``(samples,)``, and its value on the tape.

        Args:
            target: the target, in any of Captum's forms.
            mean_if_none: whether to explain the mean of all outputs of a sample if the target is
                None.

        Raises:
            InvalidTargetError: if the target does not fit the output.
            AmbiguousOutputError: if the model returns no tensor, or several that the target fits.
            MixedSamplesError: if the score of a sample depends on other samples.
            InvalidInputError: if the output does not depend on each of the inputs.
        """
        if self._selected is not None:
            known, mean, selected = self._selected
            if known is target and mean == mean_if_none:
                return selected
        selected = self._scores.of(self.output, copied(target), mean_if_none=mean_if_none)
        self._scores.require_inputs(selected[1])
        if not belongs_to_samples(selected[1]):
            self._require_apart(target, selected, mean_if_none=mean_if_none)
        self._selected = target, mean_if_none, selected
        return selected

    def _require_apart(
        self, target: Any, selected: tuple[Tensor, Value], *, mean_if_none: bool
    ) -> None:
        """Checks by derivatives that the explained samples don't influence each other."""
        scores, value = selected
        if not self._trace.rules:
            require_apart(self, scores, value.coupling)
            return
        # Check a pass without rules: rules change gradients and may hide that samples are mixed.
        with self._autocast, self._again() as plain:
            for function in self._then:
                plain.then(function)
            plain.select(target, mean_if_none=mean_if_none)

    def combined(self, value: Value) -> Combined | None:
        """Returns the scores that a score is a weighted sum of, or None if it isn't such a sum."""
        return self._scores.combined.get(value)

    def require_slopes(self, selected: Tensor, points: Sequence[GradientEdge]) -> None:
        """Raises an error if a gradient of the scores at the points would be lost in a step."""
        refuse_steps(self._trace.steps, selected.sum(), points, self.tape)

    def gradients(self, selected: Tensor, points: Sequence[GradientEdge]) -> list[Tensor | None]:
        """Returns the gradient of the scores at each point, None if they don't depend on it."""
        points = [*points, *self._watched]
        if not points:
            return []
        total = selected.sum()
        self.require_slopes(selected, points)
        gradients = derivatives(total, points, self.tape.operations)
        count = len(points) - len(self._watched)
        self._in_order = None
        self._slopes = gradients[count:]
        return list(gradients[:count])

    def gradients_in_order(
        self, selected: Tensor, calls: Sequence[AttentionCall]
    ) -> GradientsInOrder | None:
        """Returns the gradient at attention outputs, computed block by block from the last one.

        Returns:
            The gradients, or None if the forward pass has no recomputed blocks or their seams are
            not known.
        """
        inputs = dict(zip(self.values, self.edges, strict=True))
        operations = self.tape.operations
        found = seams(operations, self._trace.blocks.places(), inputs)
        if not found:
            return None
        places = {o.edge: o.index for o in operations if o.edge is not None}
        watched = [(edge, places.get(edge, -1)) for edge in self._watched]
        total = selected.sum()
        points = [*(call.edge for call in calls), *self._watched]
        self.require_slopes(selected, points)
        self._in_order = GradientsInOrder(
            total, calls, watched, found, operations, self._trace.blocks.spent
        )
        return self._in_order

    def watch(self, points: Sequence[GradientEdge]) -> None:
        """Sets points at which the gradient is also computed from now on; see `slopes`."""
        self._watched = points

    def slopes(self, selected: Tensor) -> Sequence[Tensor | None]:
        """Returns the gradient at the watched points, computed if not since the last call."""
        if self._in_order is not None:
            self._slopes, self._in_order = self._in_order.finish(), None
        if self._slopes is None:
            self.gradients(selected, ())
        slopes, self._slopes = self._slopes or (), None
        return slopes

    def history(self, value: Value) -> History:
        """Returns the part of the forward pass that a score depends on."""
        if value in self._of_scores:
            return self._of_scores[value]
        behind = [o for o in leading_to([value], self._end) if o.index >= self._end]
        read = [value, *(v for operation in behind for _, v in operation.carried())]
        key = frozenset(v for v in read if v.operation is None or v.operation.index < self._end)
        if key not in self._histories:
            operations = leading_to(key)
            found = sum(o.attention is not None for o in operations)
            every = sum(o.attention is not None for o in self.tape.operations)
            self._histories[key] = History(operations, self._named, beside=every > found)
        history = self._of_scores[value] = self._histories[key]
        history.go_on(behind)
        return history

    @property
    def whole(self) -> History:
        """The whole forward pass, independent of the explained score."""
        return History(self.tape.operations, self._named, beside=False)


@contextmanager
def traced_forward(
    forward_func: Callable[..., Any],
    arguments: Arguments[Any],
    *,
    keep: frozenset[Kind] = frozenset(),
    rules: ForwardRules | None = None,
    all_edges: bool = False,
    layers: Sequence[ChosenLayer] = (),
    layer_inputs: bool = False,
    checkpoint: int | None = None,
) -> Iterator[TracedForward]:
    """Runs a model once under the trace; within the context its output can be explained.

    Args:
        forward_func: the model or any callable, as in Captum.
        arguments: the tensors to explain, and the other arguments of the model.
        keep: the kinds of operations whose operands are kept for the rules.
        rules: the rules that change the gradient of some operations, by kind.
        all_edges: whether to keep the position of every operation's output in the autograd graph.
        layers: the modules whose tensors are watched.
        layer_inputs: whether to watch the inputs of these modules instead of their outputs.
        checkpoint: the number of attention calls per block that is recomputed in the backward pass;
            None to recompute only what the model itself checkpoints.
    """
    inputs = arguments.inputs
    modules = modules_of(forward_func)
    names = {id(module): name for name, module in modules}
    sharded = sharded_parameter(modules)
    if sharded is not None and Kind.PRODUCT in keep:
        raise reads_sharded(f"The parameter {sharded!r}")
    describe_packages()
    with explaining(modules, list(inputs)) as state:
        trace = Trace(Recorder(keep, names, rules, edges=all_edges, checkpoint=checkpoint))
        trace.tape.on_write = state.before_write
        state.drew = False
        trace.on_draw = state.note_draw
        trace.tape.lends_weights = sharded is not None
        entered = tuple(_enter(tensor) for tensor in inputs)
        values = tuple(trace.enter_input(tensor) for tensor in entered)
        for value in values:
            axis = Axis.of(value.shape, 0, arguments.samples)
            value.batch = Batch(0, axis, arguments.samples)
        edges = tuple(get_gradient_edge(t) if t.requires_grad else None for t in entered)
        again = partial(traced_forward, forward_func, arguments, checkpoint=checkpoint)
        forward = TracedForward(trace, inputs, values, edges, arguments.names(forward_func), again)
        watched = WatchedLayers(layers, trace.tape, inputs=layer_inputs)
        try:
            with refusing_scripted(modules), APPLIED, watched.watching(), trace:
                forward.output = called(forward_func, arguments, entered)
            forward.layers = watched.tensors()
            forward.finish()
            yield forward
        finally:
            forward.clear()
            trace.clear()


def _autocast(device_type: str) -> torch.autocast:
    """Returns an autocast context with the current autocast settings."""
    enabled = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, torch.get_autocast_dtype(device_type), enabled=enabled)


def _enter(tensor: Tensor) -> Tensor:
    """Returns a copy of an input for the model, so that the user's own tensor is not affected."""
    inside = tensor.detach()
    if not inside.is_floating_point():
        return inside.clone()
    if inside.is_inference():
        inside = inside.clone()
    # A copy of a leaf: the model may write into it.
    return inside.requires_grad_().clone()
