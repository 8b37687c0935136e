"""LRP-gamma in linear maps, as a gradient: for positive weights (Ali et al.), or for all signs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from captum_transformer.rules.gradient.hold import MARK, refused
from captum_transformer.rules.relevance.bias import adds_to, applies_weights, has_bias
from captum_transformer.trace.applied_weights import applied_weights
from captum_transformer.trace.features import is_linear_layer
from captum_transformer.trace.kinds import COPIES, Kind, Role
from captum_transformer.trace.layers_of_entries import layer_of_entries
from captum_transformer.trace.numeric import accumulation_dtype, quotient
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import scores_of
from captum_transformer.trace.products import repeats_signal
from captum_transformer.trace.recorder import ForwardRule
from captum_transformer.trace.value import Value


@dataclass(frozen=True)
class Gamma:
    """The LRP-gamma rule for one linear layer.

    Attributes:
        gamma: how much the positive weights are favoured.
        keeps_output: whether the layer still returns what it did without the rule.
    """

    gamma: float
    keeps_output: bool
    alone: ClassVar[bool] = True  # whether a constant that is added later may be the layer's bias


def favour_positive(gammas: Mapping[int, Gamma]) -> ForwardRule:
    """Returns a rule that favours the positive weights of linear layers.

    Args:
        gammas: the settings, by the index of the layer's operation on the tape.
    """

    def rule(operation: Operation) -> Any:
        gamma = gammas.get(operation.index)
        if gamma is None:
            return NotImplemented
        if not is_linear_layer(operation):
            return refused(
                operation, "LRP-gamma is for weights that the inputs don't reach", "Use gamma=0; "
            )
        if operation.argument("bias") is None:
            operation.note = gamma
        constants = [o for o in operation.operands if o.value is None and o.dtype.is_floating_point]
        plain = {operand: operand.tensor.detach() for operand in constants}
        favoured = {o: w + gamma.gamma * w.clamp(min=0) for o, w in plain.items()}
        output: Tensor = operation.run(lambda o: favoured.get(o, o.tensor))
        if not gamma.keeps_output:
            return output
        unchanged: Tensor = operation.run(lambda o: o.tensor.detach())
        held = output.detach()
        return unchanged + (output - held) * quotient(unchanged, held)

    return rule


def refuse_positive_bias(operation: Operation) -> Any:
    """Refuses a bias that is added to a layer of `favour_positive`, which favours its own bias."""
    traced = operation.traced()
    found = _map_of(traced[0][1], Gamma) if len(traced) == 1 else None
    if found is None or not adds_to(operation):
        return NotImplemented
    return refused(
        operation,
        "LRP-gamma favours the positive part of a layer's bias, too, but not of what is added to "
        "the layer's result",
        "Write the layer with its bias as `F.linear(x, weight, bias)`, or use gamma=0; ",
    )


def refuse_entries(operation: Operation) -> Any:
    """Refuses a linear layer that is written as entries that are multiplied and summed."""
    ((_, value), *_), layer = operation.traced(), layer_of_entries(operation)
    # Without new features it may also be the sum of the entries that a mask keeps.
    if layer is None or value.operation is None or not repeats_signal(value.operation):
        return NotImplemented
    return refused(
        operation,
        "LRP-gamma is for products of matrices, and this sum completes a linear layer that is "
        "written entry by entry",
        "Write the layer as `F.linear(x, weight)`, or use gamma=0; ",
    )


# Which operations a rule is for.
Where = Callable[[Operation], bool]


@dataclass
class Favoured:
    """A linear map whose gradient favours terms with the sign of the output.

    Attributes:
        gamma: how much these terms are favoured.
        product: the output: ``sum x w + b``.
        magnitude: ``sum |x w| + |b|``.
        added: the bias, where it is a term by itself.
        alone: whether a constant that is added later may be its bias.
        of: the map that the bias was added to, if it was added afterwards.
        attends: whether the outputs are scores of attention: then the map is no layer.
    """

    gamma: float
    product: Tensor
    magnitude: Tensor
    added: Tensor | None = None
    alone: bool = True
    of: "Favoured | None" = None
    attends: bool = False

    @property
    def makes_scores(self) -> bool:
        """Whether the outputs are scores of attention, with or without what is added to them."""
        return self.attends or (self.of is not None and self.of.makes_scores)

    def slope(self) -> Tensor:
        """Returns the part of the gradient that favoured terms get, with the sign of the output."""
        dtype = accumulation_dtype(self.product.dtype)
        product, magnitude = (t.detach().to(dtype) for t in (self.product, self.magnitude))
        favoured = product.abs().mul_(1 + self.gamma / 2).add_(magnitude, alpha=self.gamma / 2)
        # The divisor is at least as large as the dividend, so only zero has to be replaced.
        return product / favoured.clamp_(min=torch.finfo(dtype).tiny)

    def of_bias(self, constant: Tensor) -> Tensor:
        """Returns the bias's part of the output's relevance, for a gradient of one.

        Args:
            constant: what the operation adds; an operation before it may have added a bias, too.
        """
        constant, slope = constant if self.added is None else self.added, self.slope()
        whole = (1 + self.gamma / 2) * constant * slope.abs()
        return whole + self.gamma / 2 * constant.abs() * slope


Note = TypeVar("Note", Favoured, Gamma)


def favour(operation: Operation, *, gamma: float, where: Where) -> Any:
    """LRP-gamma for a linear map with constant weights, whatever the signs of inputs and outputs.

    With ``z = W x + b`` the gradient ``g`` at the output becomes

        (1 + gamma/2) W^T h + gamma/2 sign(x) |W|^T (sign(z) h)   at the input,

    where ``h = g |z| / ((1 + gamma/2) |z| + gamma/2 (|W| |x| + |b|))``. This equals the rule that
    splits inputs, weights and bias by their signs, but no matrix is split, nothing cancels, and a
    denominator is only zero if z is zero, which has no relevance.
    """
    signals = [(o, value) for o, value in operation.traced() if o.role is not Role.BIAS]
    if len(signals) != 1 or not where(operation):
        return NotImplemented
    ((signal, value),) = signals
    if signal.role is not Role.SIGNAL or value.keys is not None:
        return NotImplemented
    if operation.kind is Kind.PRODUCT:
        product = operation.contraction()
        if product is None or not applies_weights(product, signal):
            return NotImplemented
    addend = None if has_bias(operation, signal) else operation.argument("bias")

    def alone(operand: Operand) -> Tensor:
        return torch.zeros_like(operand.tensor) if operand is addend else operand.tensor

    product_alone: Tensor = operation.run(alone)
    note = operation.note = Favoured(
        gamma, product_alone, _of_magnitudes(operation, alone), alone=addend is None
    )
    if addend is None:
        return _Favour.apply([product_alone.detach()], note, product_alone, note.magnitude)
    # The addend is a term by itself: a signal, or positions.
    whole = operation.run(lambda o: o.tensor if o is addend else o.tensor.detach())
    terms = [whole] if addend.value is not None else []
    return _Favour.apply([whole.detach()], note, product_alone, note.magnitude, *terms)


def _of_magnitudes(operation: Operation, tensor: Callable[[Operand], Tensor]) -> Tensor:
    """Runs the operation on the magnitudes of everything that it multiplies and adds."""

    def magnitude(operand: Operand) -> Tensor:
        if not operand.dtype.is_floating_point:
            return operand.tensor
        of = tensor(operand)
        return of.abs() if operand.value is not None else of.detach().abs()

    factors = {k: abs(v) for k, v in operation.kwargs.items() if k in ("alpha", "beta")}
    result: Tensor = operation.changed(kwargs={**operation.kwargs, **factors}).run(magnitude)
    return result


def favour_bias(operation: Operation) -> Any:
    """Treats a bias that is added to a linear map afterwards as one within the function."""
    traced = operation.traced()
    # A number is not a bias, but a part of the activation that follows, as in `relu6(x + 3)`.
    found = _map_of(traced[0][1], Favoured) if len(traced) == 1 < len(operation.operands) else None
    if found is None or not adds_to(operation):
        return NotImplemented
    note, moves, made = found

    def moved(tensor: Tensor, *, sizes: bool = False) -> Tensor:
        for move in moves:
            tensor = _on(tensor, move)
            tensor = tensor.abs() if sizes else tensor
        return tensor

    magnitude = moved(note.magnitude, sizes=True)
    constant = _on(torch.zeros_like(magnitude), operation)
    product = _on(moved(note.product), operation)
    before = note.added
    if before is None and made.argument("bias") is not None:
        ((of, _),) = made.traced()
        before = _on(torch.zeros(of.size, dtype=of.dtype, device=of.device), made)
    operation.note = Favoured(
        note.gamma,
        product,
        (_on(magnitude, operation) - constant).abs() + constant.abs(),
        added=constant if before is None else _on(moved(before), operation),
        of=note,
    )
    return _Favour.apply([product.detach()], operation.note, product, operation.note.magnitude)


def _on(tensor: Tensor, operation: Operation) -> Tensor:
    """Runs an operation with another tensor in place of its only signal."""
    ((signal, _),) = operation.traced()
    result: Tensor = operation.run(lambda o: tensor if o is signal else o.tensor.detach())
    return result


def _map_of(value: Value, notes: type[Note]) -> tuple[Note, list[Operation], Operation] | None:
    """Returns the note of the map that made a value, the operations since, and the map."""
    moves: list[Operation] = []
    while (operation := value.operation) is not None:
        if isinstance(note := operation.note, notes):
            return (note, moves[::-1], operation) if note.alone else None
        traced = operation.traced()
        passes = operation.kind in COPIES | {Kind.MUL}
        passes = passes or (
            operation.kind is Kind.DIV and operation.argument("input") is traced[0][0]
        )
        if not passes or len(traced) != 1 or len(operation.outputs) != 1:
            return None
        moves.append(operation)
        ((_, value),) = traced
    return None


def note_scores(operation: Operation) -> Any:
    """Marks the product that makes the scores whose softmax weights an operation applies.

    With constant queries it would count as a layer, which it does not in fused attention.
    """
    for _, weights in applied_weights(operation):
        scores = scores_of(weights)
        if scores is not None and isinstance(scores.note, Favoured):
            scores.note.attends = True
    return NotImplemented


class _Favour(torch.autograd.Function):
    """Returns the unchanged output of a linear map, with the gradient of the favoured map."""

    @staticmethod
    def forward(
        ctx: Any, value: list[Tensor], note: Favoured, product: Tensor, *_: Tensor
    ) -> Tensor:
        # In half precision it may underflow; bfloat16 has the range of float32.
        kept = torch.promote_types(product.dtype, torch.bfloat16)
        ctx.save_for_backward(note.slope().to(kept), MARK)
        ctx.note = note
        return value.pop()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope, _ = ctx.saved_tensors
        note: Favoured = ctx.note
        (gradient,) = gradients
        terms = [gradient] * (len(ctx.needs_input_grad) - 4)
        if note.makes_scores:
            return None, None, gradient, None, *terms
        dtype = gradient.dtype
        of_product = slope.abs().mul_(gradient).mul_(1 + note.gamma / 2).to(dtype)
        of_magnitude = (gradient * slope).mul_(note.gamma / 2).to(dtype)
        return None, None, of_product, of_magnitude, *terms
