"""Whether shares that pass through the chosen attention layers can reach the inputs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.maps import attend_with
from captum_transformer.rules.ledger import Ledger
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.value import Value

if TYPE_CHECKING:
    from captum_transformer.rules.flow.token_flow import TokenFlow


class ReachesInputs:
    """The condition that a flow's shares reach the wanted values.

    Which tokens of a value were made of inputs, and which were learned, is known where shares
    arrive, not from the value as a whole. Shares may also be zero, as where all gradients are
    negative, but then shares through other maps aren't. Of a wanted value to which no way leads at
    all, whoever asks for it says more.
    """

    what = "some of it reaches the inputs"

    def __init__(
        self, flow: "TokenFlow", seeds: Mapping[Value, Tensor], wanted: Sequence[Value]
    ) -> None:
        self._flow, self._seeds, self._wanted = flow, seeds, wanted
        self._found: list[Tensor] = []
        self._has_ways = False

    def run(self, ledger: Ledger) -> dict[Value, Tensor]:
        """Returns the shares that reach the wanted values."""
        found = self._flow(self._seeds, self._wanted, ledger)
        self._found = list(found.values())
        self._has_ways = ledger.reached.issuperset(self._wanted)
        return found

    def holds(self) -> Tensor:
        """Returns whether some share is not zero."""
        return torch.stack([(share != 0).any() for share in self._found]).any()

    def require(self) -> None:
        """Raises an error if no share reaches the wanted values, whatever is in the maps."""
        if not self._has_ways or not self._flow.is_made_of(self._wanted) or self._arrived():
            return
        even = self._flow.with_maps(attend_with(_ones))
        self._found = list(even(self._seeds, self._wanted).values())
        if not self._arrived():
            raise leads_nowhere()

    def _arrived(self) -> bool:
        return truth(self.holds(), f"whether {self.what}")


def _ones(call: AttentionCall, rows: slice) -> Tensor:
    shape = call.map_shape()
    return torch.ones(shape, device=call.value.device)[..., rows, :]


def leads_nowhere() -> UnsupportedOperationError:
    """The error for tokens that attention alone has made of the inputs."""
    return UnsupportedOperationError(
        "The tokens of the chosen attention layers were made of the inputs by earlier "
        "attention without a skip beside it (as where LeViT merges tokens, or where a "
        "learned class token stands for each frame of a video), so their relevance leads "
        "back to no input. Choose an earlier `layer` or `start_layer`, or a method that "
        "multiplies all layers, such as AttentionRollout."
    )
