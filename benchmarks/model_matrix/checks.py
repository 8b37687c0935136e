"""Runs every method on a family and holds what it says against what must be so."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.model_matrix.comparisons import (
    COMPARISONS,
    Comparison,
    Ways,
    difference,
    parts_of,
)
from benchmarks.model_matrix.conservation import conservation_error
from benchmarks.model_matrix.family import Case, Family
from benchmarks.model_matrix.methods import METHODS, SAME_FOR_ALL, THROUGH_ALL
from captum_transformer import GenericAttentionRelevance
from captum_transformer.calling import Arguments
from captum_transformer.errors import ExplanationError
from captum_transformer.rules.gradient import ATTN_LRP, conservative_lrp
from captum_transformer.trace import traced_forward

# Maps of two classes differ by more, as a share of how far their values are apart.
_SAME = 1e-2
# How far the output may change under the trace, as a share of its largest value.
_EXACT = 1e-6


@dataclass(frozen=True)
class Verdict:
    """What became of a method on a family.

    Attributes:
        refused: the error's text, if the method refused.
        failed: the checks that failed, each with what was seen.
        warned: what the method warned of.
    """

    refused: str | None = None
    failed: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Whether there is an explanation, and all checks hold."""
        return self.refused is None and not self.failed


@dataclass
class Row:
    """What is known of a family.

    Attributes:
        family: its library and name.
        calls: attention calls among tokens, and among channels.
        streams: which tokens attend to which.
        tokens: how many tokens each input has; empty if it can't be told.
        failed: what failed of the forward pass itself.
        verdicts: by method.
        conservation: ConservativeLRP's error without biases; None if no theory promises one.
        seconds: how long all of it took.
    """

    family: tuple[str, str]
    calls: tuple[int, int] = (0, 0)
    streams: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    failed: tuple[str, ...] = ()
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    conservation: float | None = None
    seconds: float = 0.0


def row_of(family: Family, turn: int | None = None) -> Row:
    """All that the table says of a family.

    Args:
        family: which one.
        turn: if given, methods take turns: of the comparisons each has one, which for the next
            method and the next turn is another one.
    """
    start = time.perf_counter()
    warnings.simplefilter("ignore")
    row = Row((family.library, family.name))
    case, *others = map(family.build, family.attentions)
    _read_trace(row, case)
    ways = Ways(case, others)
    for place, name in enumerate(METHODS):
        compared = COMPARISONS if turn is None else [COMPARISONS[(place + turn) % len(COMPARISONS)]]
        row.verdicts[name] = _verdict(name, ways, compared)
    if family.not_conserved is None and row.verdicts["ConservativeLRP"].works:
        row.conservation = conservation_error(case)
        if not row.conservation <= 1e-3:
            why = (f"conserves but for {row.conservation:.0e} without biases",)
            row.verdicts["ConservativeLRP"] = Verdict(failed=why)
    row.seconds = time.perf_counter() - start
    return row


def _read_trace(row: Row, case: Case) -> None:
    plain = _tensor(case.plain())
    arguments = Arguments[Any](case.inputs, None, case.named)
    for rules in (None, conservative_lrp(), ATTN_LRP):
        try:
            with traced_forward(case.forward, arguments, rules=rules) as forward:
                changed = difference([_tensor(forward.output).detach()], [plain])
                if changed > _EXACT:
                    row.failed += (f"the output changes by {changed:.0e} under the trace",)
                if rules is None:
                    attention = [o.attention for o in forward.tape.operations if o.attention]
                    row.calls = (len(forward.calls), len(attention) - len(forward.calls))
                    ties = dict.fromkeys(forward.whole.streams.pairs())
                    row.streams = [q if q == k else f"{q} to {k}" for q, k in ties]
        except ExplanationError:
            continue
        except Exception as error:
            row.failed += (f"the trace raises {_named(error)}",)
            break
    try:
        tokens = parts_of(case.attribute_tokens(GenericAttentionRelevance))
        row.tokens = [str(part.shape[1]) for part in tokens]
    except Exception:
        # The methods' own columns say what is wrong.
        return


def _verdict(name: str, ways: Ways, comparisons: Sequence[Comparison]) -> Verdict:
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.filterwarnings("always", module="captum_transformer")
            failed = tuple(_failures(name, ways, comparisons))
        return Verdict(failed=failed, warned=tuple(dict.fromkeys(str(w.message) for w in heard)))
    except ExplanationError as error:
        return Verdict(refused=str(error))
    except Exception as error:
        return Verdict(failed=(f"raises {_named(error)}",))


def _named(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _failures(name: str, ways: Ways, comparisons: Sequence[Comparison]) -> Iterator[str]:
    case = ways.explained
    # In training mode: explaining must switch dropout off by itself, and leave the mode alone.
    case.model.train()
    before = _state(case)
    # All targets at once. What the first is compared with below is explained by itself.
    found, *others_found = map(parts_of, case.attribute_targets(METHODS[name]))
    if changed := _changed(before, _state(case)):
        yield f"changes the model's {changed}"
    case.model.eval()
    if not all(part.isfinite().all() for part in found):
        yield "is not finite"
        return
    # Grad-CAM keeps what is positive, which for a target may be nothing at all.
    if not any(part.any() for parts in (found, *others_found) for part in parts):
        yield "is all zero"
        return
    for compare in comparisons:
        yield from compare(name, found, ways)
    same = 1e-7 if name == THROUGH_ALL else _SAME
    classes_differ = [_spread_difference(other, found) > same for other in others_found]
    if name not in SAME_FOR_ALL and classes_differ and not any(classes_differ):
        yield "is the same for two targets"


def _state(case: Case) -> dict[str, Any]:
    """What explaining must leave alone."""
    model = case.model
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [b.detach().clone() for b in model.buffers()],
        "gradients": [p for p in model.parameters() if p.grad is not None],
        "training mode": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],  # noqa: SLF001
        "random state": [torch.get_rng_state()],
    }


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    changed = [
        name
        for name, old in before.items()
        if len(old) != len(after[name]) or not all(map(same, old, after[name]))
    ]
    return ", ".join(changed)


def _spread_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest one, as a share of how far the values of either part are apart."""
    parts = [
        float((a - b).abs().max()) / spread
        for a, b in zip(one, other, strict=True)
        if (spread := max(float(part.max() - part.min()) for part in (a, b)))
    ]
    return max(parts, default=0.0)


def _tensor(output: Any) -> Tensor:
    """The tensor that is explained."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    return logits if isinstance(logits, Tensor) else output[0]
