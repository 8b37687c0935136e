"""What flows back to values of what starts behind them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.trace.value import Value


def behind(
    flow: TokenFlow, seeds: Mapping[Value, Tensor], wanted: Sequence[Value]
) -> dict[Value, Tensor]:
    """What reaches some values; what starts at one of them is a part of it already, and left out.

    Args:
        flow: the token flow.
        seeds: shares to start with.
        wanted: the values.

    Returns:
        For each value what reaches it; nothing for those that no seed is behind.
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
