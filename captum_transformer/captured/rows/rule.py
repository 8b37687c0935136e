"""What an operation does with parts of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.fx import Node

from captum_transformer.captured.rows.windows import Box, whole

# Where the result of each node may be other than zero; None if nowhere.
Supports: TypeAlias = Mapping[Node, Box | None]
# Adds an operation to the new graph.
Emit: TypeAlias = Callable[..., Node]


class Rule:
    """An operation of which nothing is known: it reads everything, and all of it is computed.

    Attributes:
        node: the operation.
        moves: whether it only moves entries, so that computing fewer saves nothing.
    """

    moves = False

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def sizes(self) -> Sequence[int]:
        """The sizes of what its boxes are parts of: the result's shape; none for a tuple."""
        return shape_of(self.node)

    def support(self, supports: Supports) -> Box | None:
        """Returns where the result may be other than zero, or None if it is zero everywhere."""
        del supports
        return whole(self.sizes)

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        """Returns what can be computed that contains a box, and what it is computed from."""
        del box, supports
        read = [(node, whole(shape_of(node))) for node in self.node.all_input_nodes]
        return whole(self.sizes), read

    def build(self, box: Box, given: Sequence[Node], emit: Emit) -> Node:
        """Adds the operation that computes a box.

        Args:
            box: one that `needs` returned.
            given: what it is computed from, as `needs` returned it.
            emit: adds an operation.
        """
        raise NotImplementedError

    def cost(self, box: Box, supports: Supports) -> int:
        """Returns the number of multiplications of a product, for a box of its result."""
        del box, supports
        return 0


def shape_of(node: Node) -> tuple[int, ...]:
    """Returns the shape of a result, or () if it is no tensor."""
    value: Any = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
