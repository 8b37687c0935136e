"""The token flow from several seeds to the values before them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.trace.value import Value


def behind(
    flow: TokenFlow, seeds: Mapping[Value, Tensor], wanted: Sequence[Value]
) -> dict[Value, Tensor]:
    """Returns the shares that reach some values, without seeds that start at the value itself.

    Args:
        flow: the token flow.
        seeds: the shares to start with.
        wanted: the values that shares are carried to.

    Returns:
        The share that reaches each value; nothing for values that no seed is behind.
    """
    at_wanted = {value: seeds[value] for value in wanted if value in seeds}
    groups = [({v: s for v, s in seeds.items() if v not in at_wanted}, list(wanted))]
    groups += [
        ({value: seed}, [earlier for earlier in wanted if value.descends_from(earlier)])
        for value, seed in at_wanted.items()
    ]
    found: dict[Value, Tensor] = {}
    for started, values in groups:
        reached = flow(started, values) if started and values else {}
        found |= {v: found[v] + share if v in found else share for v, share in reached.items()}
    return found
