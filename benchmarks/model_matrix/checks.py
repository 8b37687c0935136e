"""Runs every method on a family and holds what it says against what must be so."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.model_matrix.conservation import conservation_error
from benchmarks.model_matrix.family import SAMPLES, Case, Family
from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LeGrad,
    LibraGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.calling import Arguments
from captum_transformer.errors import ExplanationError
from captum_transformer.rules.gradient import ATTN_LRP, conservative_lrp
from captum_transformer.trace import traced_forward

METHODS: dict[str, Callable[..., Any]] = {
    "TransformerAttribution": TransformerAttribution,
    "full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "AttentionRollout": AttentionRollout,
    "RawAttention": RawAttention,
    "AttentionGradCam": AttentionGradCam,
    "PartialLRP": PartialLRP,
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
    "AttnLRP, gamma": partial(AttnLRP, gamma=0.05, conv_gamma=100.0),
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "LeGrad": LeGrad,
}
# The same map for every target.
SAME_FOR_ALL = frozenset({"AttentionRollout", "RawAttention"})
# These divide by sums that may nearly cancel, so rounding tells in their maps.
_MAGNIFY = frozenset({"TransformerAttribution", "full LRP", "PartialLRP"})
# This goes through all layers that way, and at the end the class hardly matters.
_THROUGH_ALL = "full LRP"
# Maps of two classes differ by more than _SAME, as a share of how far their values are apart.
_EXACT, _ROUNDED, _SAME = 1e-6, 1e-3, 1e-2
# How many times as much as rounding of the weights alone may rounding of all steps change.
_STEPS = 32
# Where attention is written out, some models take its softmax in single precision.
_BY_SOFTMAX = 1e-5


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


def row_of(family: Family) -> Row:
    """All that the table says of a family."""
    start = time.perf_counter()
    warnings.simplefilter("ignore")
    row = Row((family.library, family.name))
    case, *others = map(family.build, family.attentions)
    _read_trace(row, case)
    single = replace(case, model=copy.deepcopy(case.model)).to(torch.float32)
    for name in METHODS:
        row.verdicts[name] = _verdict(name, case, others, single)
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
                difference = _difference([_tensor(forward.output).detach()], [plain])
                if difference > _EXACT:
                    row.failed += (f"the output changes by {difference:.0e} under the trace",)
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
        tokens = _parts(case.attribute_tokens(GenericAttentionRelevance))
        row.tokens = [str(part.shape[1]) for part in tokens]
    except Exception:
        # The methods' own columns say what is wrong.
        return


def _verdict(name: str, case: Case, others: list[Case], single: Case) -> Verdict:
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.filterwarnings("always", module="captum_transformer")
            failed = tuple(_failures(name, case, others, single))
        return Verdict(failed=failed, warned=tuple(dict.fromkeys(str(w.message) for w in heard)))
    except ExplanationError as error:
        return Verdict(refused=str(error))
    except Exception as error:
        return Verdict(failed=(f"raises {_named(error)}",))


def _named(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _failures(name: str, case: Case, others: list[Case], single: Case) -> Iterator[str]:
    method = METHODS[name]
    # In training mode: explaining must switch dropout off by itself, and leave the mode alone.
    case.model.train()
    before = _state(case)
    # All targets at once. What the first is compared with below is explained by itself.
    found, *others_found = map(_parts, case.attribute_targets(method))
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
    yield from _apart(name, found, case, others)
    same = 1e-7 if name == _THROUGH_ALL else _SAME
    classes_differ = [_spread_difference(other, found) > same for other in others_found]
    if name not in SAME_FOR_ALL and classes_differ and not any(classes_differ):
        yield "is the same for two targets"
    difference = _difference(_parts(single.attribute(method)), found)
    allowed = 0.2 if name == _THROUGH_ALL else _ROUNDED
    if difference > allowed and name in _MAGNIFY:
        rounded = replace(single, model=copy.deepcopy(single.model)).to(torch.float64)
        allowed = max(allowed, _STEPS * _difference(_parts(rounded.attribute(method)), found))
    if difference > allowed:
        yield f"differs by {difference:.0e} between single and double precision"


def _apart(name: str, found: list[Tensor], case: Case, others: list[Case]) -> Iterator[str]:
    """What a sample by itself, and other implementations of attention, say differently.

    The implementations explain this sample by itself. Where one of them says what was found in the
    batch, so does the explained implementation: it is asked only if they differ.
    """
    method, asked = METHODS[name], _asked(name)
    close = _ROUNDED if name in _MAGNIFY else _EXACT

    def alone(implementation: Case) -> list[Tensor]:
        return _parts(implementation.sample(asked).attribute(method))

    def difference(one: list[Tensor], other: list[Tensor]) -> float:
        """Between what is said of the sample, as a share of the largest value of the batch."""
        place = torch.tensor([asked])
        replaced = [
            [part.index_copy(0, place, of_one) for part, of_one in zip(found, parts, strict=True)]
            for parts in (one, other)
        ]
        return _difference(*replaced)

    in_batch = [part[asked : asked + 1] for part in found]
    said = [alone(implementation) for implementation in others]
    if said and all(difference(one, in_batch) <= close for one in said):
        return
    by_itself = alone(case)
    if (far := difference(in_batch, by_itself)) > close:
        yield f"differs by {far:.0e} between a batch and a sample of it by itself"
    for one in said:
        if (far := difference(one, by_itself)) > max(close, _BY_SOFTMAX):
            yield f"differs by {far:.0e} between implementations of attention"


def _asked(method: str) -> int:
    """The sample that is explained by itself: from method to method they take turns."""
    return list(METHODS).index(method) % SAMPLES


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


def _parts(relevance: Any) -> list[Tensor]:
    if isinstance(relevance, Mapping):
        return list(relevance.values())
    return list(relevance) if isinstance(relevance, tuple) else [relevance]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest one, as a share of the largest value of all."""
    largest = max(float(part.abs().max()) for part in expected) or 1.0
    pairs = zip(found, expected, strict=True)
    return max(float((f.double() - e.double()).abs().max()) for f, e in pairs) / largest


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
