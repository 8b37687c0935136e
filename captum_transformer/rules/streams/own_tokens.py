"""The tokens that parts of a score belong to, which arise behind these tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.flow.behind import behind
from captum_transformer.rules.flow.token_flow import TokenFlow
from captum_transformer.rules.ledger import ROUNDING_OF_OPERATION
from captum_transformer.rules.streams.relevancies import shares_of_queries
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.numeric import quotient
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.tokens import spread_over_tokens
from captum_transformer.trace.value import Value

_Parts = Mapping[Value, Tensor]


def at_own_tokens(
    tape: Tape,
    parts: _Parts,
    streams: Sequence[Value],
    calls: Sequence[AttentionCall],
    *,
    whole: bool,
) -> dict[Value, Tensor]:
    """Returns what each stream of tokens gets of the parts that arise behind it.

    A token keeps its place along skip connections. What attention makes, if there is no skip beside
    it, belongs to the tokens that ask.

    Args:
        tape: the traced forward pass.
        parts: parts of a score, at the values where they arise.
        streams: the values that hold the tokens.
        calls: the attention calls that the score depends on.
        whole: whether all parts have to belong to tokens of the streams before them; otherwise
            those of other tokens, such as learned ones, are left out.

    Returns:
        The parts of each stream; nothing for streams that no part is behind.

    Raises:
        UnsupportedOperationError: if `whole`, and a part belongs to no token of a stream before it.
    """
    flow, found = TokenFlow(tape, {}), dict[Value, Tensor]()
    pending = [(parts, tuple(streams), False)] if parts else []
    while pending:
        some, wanted, moved = pending.pop()
        near, far = dict[Value, Tensor](), dict[tuple[Value, ...], dict[Value, Tensor]]()
        for value, part in some.items():
            before = [v for v in wanted if value.descends_from(v) or (moved and value is v)]
            without = [stream for stream in before if not flow.has_way(value, [stream])]
            if len(without) < len(before):
                near[value] = part
            if without:
                # A part doesn't get to streams that it isn't behind, so these may be in the group.
                group = wanted if len(without) == len(before) else tuple(without)
                far.setdefault(group, {})[value] = part
        arrived: Mapping[Value, Tensor] = {}
        if near:
            arrived = flow(near, wanted) if moved else behind(flow, near, wanted)
        for stream, part in arrived.items():
            found[stream] = found[stream] + part if stream in found else part
        for group, of_attention in far.items():
            if asking := _at_queries(flow, of_attention, calls, whole=whole):
                pending.append((asking, group, True))
    if whole:
        _require_all(parts, streams, found)
    return found


def _at_queries(
    flow: TokenFlow, parts: _Parts, calls: Sequence[AttentionCall], *, whole: bool
) -> dict[Value, Tensor]:
    """Moves parts of what attention calls made to the tokens that the queries come from.

    Raises:
        UnsupportedOperationError: if `whole`, and queries are learned, so that there is no token.
    """
    found: dict[Value, Tensor] = {}
    for call, shares in _by_call(flow, parts, calls):
        query = query_value(call)
        if query is None and not whole:
            continue
        if query is None:
            raise UnsupportedOperationError(
                f"Attention call {call.layer} ({call.module}) has learned queries, so what biases "
                "behind it add belongs to no token. Choose `biases=False`."
            )
        part = spread_over_tokens(shares_of_queries(call, shares), query)
        found[query] = found[query] + part if query in found else part
    return found


def _by_call(
    flow: TokenFlow, parts: _Parts, calls: Sequence[AttentionCall]
) -> list[tuple[AttentionCall, Tensor]]:
    """Divides parts among the attention calls that made the tokens; returns them at their outputs.

    Calls side by side, as for heads one by one, get equal parts. In the flow, where their shares
    are added, each would get all of it.
    """
    alone, found = dict[Value, Tensor](), list[tuple[AttentionCall, Tensor]]()
    for value, part in parts.items():
        outputs = [c.output for c in calls if value.descends_from(c.output)]
        made_by = [output for output in outputs if flow.has_way(value, [output])]
        if len(made_by) < 2:
            alone |= {value: part} if made_by else {}
            continue
        whole = [flow.comes_from_input(value, [output], part) for output in made_by]
        divided = quotient(part, torch.stack(whole).sum(0))
        for call in calls:
            if call.output in made_by:
                found.append((call, flow({value: divided}, [call.output])[call.output]))
    if alone:
        reached = flow(alone, [call.output for call in calls])
        behind_calls = (c for c in calls if any(v.descends_from(c.output) for v in alone))
        found += [(call, reached[call.output]) for call in behind_calls]
    return found


def _require_all(parts: _Parts, streams: Sequence[Value], found: _Parts) -> None:
    """Checks that each stream has got all parts behind it."""
    kept = []
    for stream in streams:
        expected = [part for value, part in parts.items() if value.descends_from(stream)]
        if expected:
            sizes = torch.stack([part.abs().sum() for part in expected]).sum()
            lost = torch.stack([part.sum() for part in expected]).sum()
            lost = lost - found[stream].sum() if stream in found else lost
            kept.append(~(lost.abs() > ROUNDING_OF_OPERATION * sizes))
    if kept and not truth(torch.stack(kept).all(), "whether biases belong to tokens of the layers"):
        raise UnsupportedOperationError(
            "What biases behind the layers add does not all belong to tokens that enter these "
            "layers, as where further tokens are joined to them later, or where tokens attend that "
            "were not made of them. Choose layers after that, or `biases=False`."
        )
