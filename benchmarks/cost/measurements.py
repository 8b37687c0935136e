"""What is measured on a model, as rows of tables."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.cost.clock import Turns, seconds
from benchmarks.cost.contenders import (
    FORWARD,
    INTEGRATED,
    LXT,
    METHODS,
    NOOP,
    REFERENCE,
    TRACED,
    Run,
    forward,
    forward_and_backward,
    forward_under_no_trace,
    forward_under_the_trace,
    integrated_gradients,
    others,
    ours,
    patched_by_lxt,
)
from benchmarks.cost.subjects import Subject
from captum_transformer.errors import ExplanationError

TARGETS = 10
SEVERAL_TARGETS = (
    "TransformerAttribution",
    "GenericAttentionRelevance",
    "ConservativeLRP",
    "AttnLRP",
)
EXTREMES = (
    ("weight", 1.0),
    ("weight", 100.0),
    ("qkv.weight", 30.0),
    ("qkv.weight", 1e-3),
    ("attn.proj.weight", 1e-30),
    ("mlp.fc1.weight", 1e-15),
    ("head.weight", 1e-20),
)

Row = dict[str, Any]


def times(subject: Subject, repeats: int, *, integrate: bool) -> list[Row]:
    """Everything that is timed on a model at one batch size; the ratio is to the reference."""
    runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
    runs |= {FORWARD: partial(forward, subject), TRACED: partial(forward_under_the_trace, subject)}
    runs |= accepted(ours(subject)) | others(subject)
    turns = Turns(runs, repeats)
    setting = {"subject": subject.name, "batch_size": len(subject.inputs)}

    def row(name: str, took: float, ratio: float) -> Row:
        return {**setting, "contender": name, "seconds": took, "ratio": ratio}

    rows = [row(name, turns.median(name), turns.ratio(name, REFERENCE)) for name in runs]
    # Too slow for several turns.
    if integrate:
        took = seconds(integrated_gradients(subject))
        rows.append(row(INTEGRATED, took, took / turns.median(REFERENCE)))
    return rows


def accepted(runs: dict[str, Run]) -> dict[str, Run]:
    """The runs that explain the model; prints why the others refuse it."""
    found = {}
    for name, run in runs.items():
        try:
            run()
        except ExplanationError as reason:
            print(f"{name}: {reason}", flush=True)
        else:
            found[name] = run
    return found


def beside_lxt(subjects: Sequence[Subject], repeats: int) -> list[Row]:
    """LXT's AttnLRP and ours. LXT patches the models' classes, so it runs after all others."""
    names = ("AttnLRP", "ConservativeLRP")
    unpatched = []
    for subject in subjects:
        runs: dict[str, Run] = {REFERENCE: partial(forward_and_backward, subject)}
        unpatched.append(Turns(runs | {name: ours(subject)[name] for name in names}, repeats))
    rows: list[Row] = []
    for subject, turns in zip(subjects, unpatched, strict=True):
        took = {name: turns.median(name) for name in (REFERENCE, *names)}
        patched = patched_by_lxt(subject)
        if isinstance(patched, str):
            print(f"LXT on {subject.name}: {patched}", flush=True)
        else:
            took[LXT] = Turns({LXT: patched}, repeats).median(LXT)
        setting = {"subject": subject.name, "batch_size": len(subject.inputs)}
        rows += [
            {**setting, "contender": name, "seconds": t, "ratio": t / took[REFERENCE]}
            for name, t in took.items()
        ]
    return rows


def overheads(subject: Subject, repeats: int) -> Row:
    """The ratio of a forward pass under the trace, and under an idle mode, to a plain one."""
    runs: dict[str, Run] = {
        FORWARD: partial(forward, subject),
        NOOP: partial(forward_under_no_trace, subject),
        TRACED: partial(forward_under_the_trace, subject),
    }
    turns = Turns(runs, repeats)
    return {
        "subject": subject.name,
        "batch_size": len(subject.inputs),
        "forward": turns.median(FORWARD),
        "noop": turns.ratio(NOOP, FORWARD),
        "ratio": turns.ratio(TRACED, FORWARD),
    }


def several_targets(subject: Subject, repeats: int) -> list[Row]:
    """The ratio of ``attribute_targets`` of ten classes to a forward and ten backward passes."""
    rows = []
    for name in SEVERAL_TARGETS:
        method = METHODS[name](subject.model)
        several = partial(method.attribute_targets, subject.inputs, list(range(TARGETS)))
        turns = Turns(
            {
                FORWARD: partial(forward, subject),
                "one": partial(method.attribute, subject.inputs, target=0),
                "several": several,
            },
            repeats,
        )
        ratio = turns.to_several("several", "one", FORWARD, TARGETS)
        rows.append({"subject": subject.name, "contender": name, "ratio": ratio})
    return rows


def extremes(subject: Subject, repeats: int) -> list[Row]:
    """TransformerAttribution with weights that make relevance a denormal number, slow on CPUs."""
    rows = []
    for part, factor in EXTREMES:
        kept = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
        with torch.no_grad():
            for name, parameter in subject.model.named_parameters():
                if part in name:
                    parameter.mul_(factor)
        method = METHODS["TransformerAttribution"](subject.model)
        runs: dict[str, Run] = {
            REFERENCE: partial(forward_and_backward, subject),
            "ours": partial(method.attribute, subject.inputs, target=subject.target),
        }
        ratio = Turns(runs, repeats).ratio("ours", REFERENCE)
        rows.append({"subject": subject.name, "weights": part, "factor": factor, "ratio": ratio})
        subject.model.load_state_dict(kept, strict=False)
    return rows
