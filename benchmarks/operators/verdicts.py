"""Runs the passes on an operator and says what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.operators.database import Case, cases
from captum_transformer.account import Reason
from captum_transformer.attr.transformer_method import seed
from captum_transformer.calling import Arguments
from captum_transformer.errors import ExplanationError, InvalidInputError
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.gradient import ATTN_LRP, conservative_lrp
from captum_transformer.rules.propagate import propagate
from captum_transformer.trace.derivatives import derivatives
from captum_transformer.trace.forward import TracedForward, traced_forward
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.recorder import ForwardRule, ForwardRules

_KEEP = flow.KEEP | relevance.TABLE.keep
_EXACT = 1e-6
_CONSTANTS = {Reason.BIAS, Reason.ADDED, Reason.JOINED, Reason.CONSTANT}


class WrongError(AssertionError):
    """A pass hands on what is not so."""


@dataclass(frozen=True)
class Outcome:
    """What became of one pass on one case.

    Attributes:
        kind: "right", "taken" (a share, by what owns up to it), "by rule" (a part is held
            constant), "refused" or "wrong".
        why: what took the share or was held, the error's text, or what is wrong.
        maps: what the inputs got.
    """

    kind: str
    why: str = ""
    maps: tuple[Tensor, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} ({self.why.partition('. ')[0]})" if self.why else self.kind


def _trace(case: Case, forward: TracedForward) -> Outcome:
    points = [edge for edge in forward.edges if edge is not None]
    found = derivatives(forward.select(None)[0].sum(), points, forward.tape.operations)
    maps = _times(case, found)
    if not _same(maps, _plain_gradient(case)):
        raise WrongError("the gradient is changed")
    return Outcome("right", maps=maps)


def _relevance(case: Case, forward: TracedForward) -> Outcome:
    taken: Counter[Reason] = Counter()

    def accounted(operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
        shares = relevance.TABLE(operation, incoming)
        for reason, share in getattr(shares, "taken", {}).items():
            taken[reason] += float(share.sum())
        return shares

    start = seed(forward, *forward.select(None))
    found = propagate(forward.tape, start, accounted, forward.values)
    return _conserved(case, tuple(found[value] for value in forward.values), taken)


def _token_flow(case: Case, forward: TracedForward) -> Outcome:
    start = seed(forward, *forward.select(None))
    attend = flow.attend_with(lambda call, rows: call.probabilities(rows))
    layers = {call.layer: attend for call in forward.calls}
    found, ledger = flow.TokenFlow(forward.tape, layers).conserved(start, forward.values)
    maps = tuple(found[value] for value in forward.values)
    # What holds several inputs gives its whole share to each of them, and what holds none to none.
    shares = [_sums([share])[0] for share in maps]
    if min(shares) < -_EXACT or max(shares) > 1 + _EXACT:
        raise WrongError(f"gives the inputs {shares}")
    if sum(shares) > 1 - _EXACT:
        return Outcome("right", maps=maps)
    if sum(shares) < case.held - _EXACT and not (forward.calls and case.has_constants):
        raise WrongError(
            f"gives the inputs {shares}, and they are in {case.held:.4g} of the entries"
        )
    takers = {taken.reason.value for taken in ledger.taken if taken.amount.sum() > _EXACT}
    return Outcome("taken", ", ".join(sorted(takers)), maps)


# What is read off a forward pass whose gradient is left alone.
_READ: dict[str, Callable[[Case, TracedForward], Outcome]] = {
    "trace": _trace,
    "relevance": _relevance,
    "token flow": _token_flow,
}
# What changes the gradient of a forward pass.
_RULES: dict[str, ForwardRules] = {"ConservativeLRP": conservative_lrp(), "AttnLRP": ATTN_LRP}
PASSES = (*_READ, *_RULES)


@dataclass
class Verdict:
    """What became of one pass on all cases of an operator.

    Attributes:
        counts: how many cases had each kind of outcome.
        reasons: what took shares or was held, and why cases were refused, by kind.
        wrong: what is wrong, by case.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, outcome: Outcome) -> None:
        """Counts one more case."""
        self.counts[outcome.kind] += 1
        if outcome.kind == "wrong":
            self.wrong[str(case)] = outcome.why
        elif outcome.why and outcome.why not in self.reasons.setdefault(outcome.kind, []):
            self.reasons[outcome.kind].append(outcome.why)

    @property
    def kind(self) -> str:
        """The worst that happened, but refused only if all was."""
        for kind in ("wrong", "by rule", "taken", "right"):
            if self.counts[kind]:
                return kind
        return "refused"


def verdicts(name: str) -> dict[str, Verdict]:
    """What becomes of each pass on an operator."""
    result = {what: Verdict() for what in PASSES}
    found = cases(name)
    seen = {case: outcomes(case) for case in found}
    for case, of_passes in seen.items():
        for what, outcome in of_passes.items():
            result[what].add(case, outcome)
    for other in found[0].spelled if found else []:
        for what, outcome in outcomes(other).items():
            expected = seen[found[0]][what]
            if expected.kind != "wrong" and not _alike(outcome, expected):
                result[what].add(other, Outcome("wrong", f"{outcome}, and else {expected}"))
    return result


def outcomes(case: Case) -> dict[str, Outcome]:
    """What becomes of each pass on a case, whatever it raises."""
    found: dict[str, Outcome] = {}

    def read() -> Outcome:
        with _traced(case) as forward:
            found.update({w: _caught(partial(_READ[w], case, forward)) for w in _READ})
        return found["trace"]

    at_all = _caught(read)
    found = {what: found.get(what, at_all) for what in _READ}
    return found | {w: _caught(partial(_by_rule, case, _RULES[w])) for w in _RULES}


def _caught(find: Callable[[], Outcome]) -> Outcome:
    try:
        return find()
    except (ExplanationError, InvalidInputError) as error:
        return Outcome("refused", str(error))
    except WrongError as error:
        return Outcome("wrong", str(error))
    except Exception as error:
        return Outcome("wrong", f"raises {type(error).__name__}: {str(error).splitlines()[0]}")


@contextmanager
def _traced(case: Case, rules: ForwardRules | None = None) -> Iterator[TracedForward]:
    score, _ = case.plain
    with traced_forward(case, Arguments(case.inputs), keep=_KEEP, rules=rules) as forward:
        if not torch.allclose(forward.output.detach(), score, rtol=1e-9, atol=0):
            raise WrongError(
                f"the output is {float(forward.output):.4g}, and else {float(score):.4g}"
            )
        yield forward


def _by_rule(case: Case, rules: ForwardRules) -> Outcome:
    held: list[str] = []

    def noted(rule: ForwardRule) -> ForwardRule:
        def run(operation: Operation) -> Any:
            result = rule(operation)
            if result is not NotImplemented:
                held.append(operation.name)
            return result

        return run

    with _traced(case, {kind: noted(rule) for kind, rule in rules.items()}) as forward:
        maps = _gradient(case, forward)
    if _same(maps, _plain_gradient(case)):
        return Outcome("right", maps=maps)
    if not held:
        raise WrongError("nothing is held, but the gradient is not autograd's")
    total, magnitude = _sums(maps)
    score = float(case.plain[0])
    # An entry of zero has no part of what is made of it, and what a mask puts in has one.
    whole = len(case.operands) == 1 and not case.is_masked and bool(case.inputs[0].all())
    if whole and abs(total - score) > _EXACT * max(magnitude, abs(score)):
        raise WrongError(f"holds a part of {held[0]}, and gives {total / score:.4g} of the score")
    return Outcome("by rule", ", ".join(dict.fromkeys(held)), maps)


def _gradient(case: Case, forward: TracedForward) -> tuple[Tensor, ...]:
    points = [edge for edge in forward.edges if edge is not None]
    return _times(case, forward.gradients(forward.select(None)[0], points))


def _times(case: Case, found: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros_like(tensor) if gradient is None else tensor * gradient
        for tensor, gradient in zip(case.inputs, found, strict=True)
    )


def _plain_gradient(case: Case) -> tuple[Tensor, ...]:
    return tuple(x * gradient for x, gradient in zip(case.inputs, case.plain[1], strict=True))


def _conserved(case: Case, maps: tuple[Tensor, ...], taken: Mapping[Reason, float]) -> Outcome:
    total, magnitude = _sums(maps)
    close = _EXACT * max(magnitude, 1.0)
    whole = total + sum(taken.values())
    if not abs(whole - 1) <= close:
        raise WrongError(f"hands on {total:.4f}, and owns up to {whole - total:.4f}")
    takers = {reason for reason, share in taken.items() if abs(share) > close}
    if takers & _CONSTANTS and case.all_explained:
        raise WrongError(f"gives {total:.4g}, and the rest to constants, of which there are none")
    if takers:
        return Outcome("taken", ", ".join(sorted(reason.value for reason in takers)), maps)
    return Outcome("right", maps=maps)


def _sums(maps: Sequence[Tensor]) -> tuple[float, float]:
    """The sum of all, and that of their absolute values."""
    if not all(bool(tensor.isfinite().all()) for tensor in maps):
        raise WrongError("is not finite")
    return tuple(float(sum(t.sum() for t in parts)) for parts in (maps, [t.abs() for t in maps]))


def _same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    largest = max(float(tensor.abs().max()) for tensor in expected)
    return all(
        bool(((a - b).abs() <= _EXACT * max(largest, 1e-3)).all())
        for a, b in zip(found, expected, strict=True)
    )


def _alike(a: Outcome, b: Outcome) -> bool:
    """The same map, or the same refusal."""
    return a.kind == b.kind and (not a.maps or _same(a.maps, b.maps))
