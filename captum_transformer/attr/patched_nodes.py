"""Parts of a model that are patched, in the clean run and in the corrupted one."""

from typing import NamedTuple

from torch import Tensor

from captum_transformer.attr.gradient_times_input import Point, slope_at
from captum_transformer.errors import InvalidInputError
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.heads import by_head
from captum_transformer.trace.picks import Picked, are_same_rows


class Node(NamedTuple):
    """A part of the model that may be patched: a tensor of a layer, or the heads of a call."""

    name: str
    point: Point
    rows: list[Picked] | None
    call: AttentionCall | None = None

    def clean(self) -> "Clean":
        """Returns the data that is kept for the corrupted run."""
        return Clean(self.point.data, self.rows)

    def score(self, known: "Clean", gradient: Tensor | None) -> Tensor:
        """Returns the difference of the activations times the coefficient."""
        corrupted, clean = self.point.data, known.data
        require_alike(f"What {self.name!r} makes", clean, corrupted)
        if not are_same_rows(self.rows, known.rows):
            raise InvalidInputError(
                f"What {self.name!r} makes is of other tokens in the clean run than in the "
                "corrupted one: the model picks them by numbers, as for experts, and picks others. "
                "Patching would put a token in the place of another one. Choose a layer that has "
                "all tokens in their order, such as the one around the experts."
            )
        slope = slope_at(corrupted, gradient)
        scores = (clean.to(slope.dtype) - corrupted.to(slope.dtype)) * slope
        if self.call is not None:
            scores = by_head(self.call, self.call.outputs(scores)).sum(-1)
        return scores.to(corrupted.dtype)


class Clean(NamedTuple):
    """The activation of a part of the model in the clean run, and the rows it belongs to."""

    data: Tensor
    rows: list[Picked] | None


def require_alike(what: str, clean: Tensor, corrupted: Tensor) -> None:
    """Raises an error if the tensors of the two runs differ in shape."""
    if clean.shape != corrupted.shape:
        raise InvalidInputError(
            f"{what} has the shape {tuple(clean.shape)} in the clean run and "
            f"{tuple(corrupted.shape)} in the corrupted one. Patching replaces one by the other: "
            f"give inputs of the same shapes, such as texts with the same number of tokens."
        )
