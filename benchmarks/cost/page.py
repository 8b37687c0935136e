"""Writes docs/cost.md from the results that are there.

python -m benchmarks.cost.page
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost.contenders import FORWARD, REFERENCE, TRACED

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LONG_RESULTS = RESULTS / "long_cpu_float32.json"
CAPTURED_RESULTS = RESULTS / "captured_cpu_float32.json"
LXT_RESULTS = RESULTS / "lxt_cpu_float32.json"
DOCS = ROOT / "docs"

TEXT = """# What explanations cost

`python -m benchmarks.cost` measures this on your machine, and `python -m benchmarks.cost.page`
writes this page from the numbers in `benchmarks/results`. All methods take turns in one process,
and each time is divided by that of a plain forward pass and backward pass to the input in the same
turn, with the model's own fused attention and without gradients of parameters. Captum's methods are
included, and pytorch-grad-cam if it is installed. The models have random weights. A ratio of 1 is
the cost of the plain gradient.

Measured on: {setting}.

![Ratios of all methods on all models](images/cost.png)

## Time

{time}

*s* is the time of one call with the whole batch. IntegratedGradients is timed once, at the
smallest batch. A method without a figure refuses the model. The
row of Captum's InputXGradient, which computes the same as the reference, shows the noise of the
machine: {noise}.

### The lower bound

Nearly all of the time is spent on products of activations with weight matrices. Per layer, the
plain forward and backward pass to the input has two of them. Methods that change the gradient
(`ConservativeLRP`, `AttnLRP`) have two as well. `GenericAttentionRelevance` adds, per attention
call, a product of queries with keys and one of gradients with values, from which the map is made
block by block. Layer-wise relevance propagation adds three per layer, one for the sum of positive
terms (`|x| |W|`) and two for the relevance, so `TransformerAttribution` has five instead of two:
its ratio can't be below 2.5 if layers are wide and sequences short. It is lower for GPT-2: the
score is read from one token, so the products for relevance in the language head are computed for
one row. Full LRP needs no gradient, so it has four products instead of two.

### Several targets at once

`attribute_targets` with ten classes, relative to the expected time, one forward pass and ten times
what one class takes in addition to a forward pass. Less than 1 is faster than expected.

{targets}

### Recording a forward pass

The trace calls Python for each operation, whatever its size. For a model with tiny layers this is
most of the time; {noop}

{overhead}

No trace in Python gets below what the calls and the state of modules cost. The least CPU time of
one thread for the test ViT, on a busy machine and without garbage collection: 1.75 ms for a
forward pass, 0.37 ms more under a mode that does nothing (133 calls), 1.4 ms more to record and
restore the state of 144 modules and of random generators, and 2.9 ms more to record 98 operations,
30 µs each. So a pass that records no operation but leaves the model as it was takes twice as long
as a plain one. For ViT-Ti/16 these times are 31.6, 1.5, 2.9 and 6.2 ms; if a trace may add a
quarter, 18 µs are left for each of its 188 operations. [Captured calls](captured.md) have no such
limit.

### Extreme weights

Products with the smallest numbers that a precision has are slow on CPUs. Relevance is linear, so
it starts large and is scaled back at the end. `TransformerAttribution` with the parameters of
that name multiplied by the factor:

{extremes}

## Memory

The peak of allocations in addition to the model and its input. No matrix of all pairs of tokens is
stored, except those of models without fused attention: maps are computed for a block of queries at
a time, and memory grows linearly with the number of tokens. Cross-attention under
`propagation="paper"` is the exception, as that rule multiplies matrices.

{memory}
"""

CAPTURED = """
## Captured and compiled

[Captured calls](captured.md) run without the trace's Python, and compiled by Inductor. Ratios to a
plain forward and backward pass as above, measured by `python -m benchmarks.captured`: {samples}
sample at a time, {threads} thread, torch {torch}. Capturing and compiling are in seconds, done
once; *nodes* is the number of tensor operations. Layers that repeat are compiled once.

{captured}

### Rows that nothing reads

A score of a class token needs one row of the last layer, and its gradient and relevance are zero
for the other rows until attention mixes them. Compiled calls compute only these rows. How many
multiplications this saves (one image):

| model | TransformerAttribution | GenericAttentionRelevance | AttnLRP | ConservativeLRP |
|---|--:|--:|--:|--:|
| ViT-B | 3.0 % | 6.8 % | 6.6 % | 14 % |
| ViT-Ti | 3.9 % | 7.1 % | 6.8 % | 13 % |

It is more in models with fewer layers, and most for language models that compute logits for all
tokens while the score is read from the last one (a GPT-2 with 3 layers of width 64 and 999 words:
35 % for TransformerAttribution, 44 % for GenericAttentionRelevance). Graphs of models that pool all
tokens stay as they are. On a GPU, attention itself is computed for all queries.
"""

BESIDE_LXT = """
## Next to LXT

LXT patches the classes of a model for the rest of the process, so it is timed after all the
others. Its version 2.1 does not import with Transformers 5: measured with torch {torch} and
Transformers {transformers}.

{times}
"""

LONG = """
### Long inputs

The growth of the process at its peak.

{long}
"""


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Some columns of the rows, with their heads, as a Markdown table."""
    numbers = [any(isinstance(row[key], (int, float)) for row in rows) for key in columns]
    lines = [
        "| " + " | ".join(columns.values()) + " |",
        "|" + "|".join("--:" if number else "---" for number in numbers) + "|",
    ]
    lines += ["| " + " | ".join(_cell(row[key]) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def times(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each contender, a column for each model and batch size."""
    settings = list(dict.fromkeys((row["subject"], row["batch_size"]) for row in rows))
    found = {(row["contender"], row["subject"], row["batch_size"]): row for row in rows}
    heads = [f"{subject}, batch of {size}" for subject, size in settings]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for contender in dict.fromkeys(row["contender"] for row in rows):
        cells = []
        for subject, size in settings:
            row = found.get((contender, subject, size))
            if row is None:
                cells.append("-")
            elif contender == REFERENCE:
                cells.append(f"{row['seconds']:.2f} s")
            else:
                cells.append(f"{row['ratio']:.2f}")
        lines.append(f"| {contender} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return str(value)


def main() -> None:
    parts = {
        name: json.loads((RESULTS / f"{name}_cpu_float32.json").read_text(encoding="utf-8"))
        for name in ("time", "targets", "overhead", "extremes", "memory")
    }
    rows = {name: part["rows"] for name, part in parts.items()}
    setting = "{device}, {threads} threads, {machine}, {dtype}, torch {torch}".format(
        **parts["time"]["setting"]
    )
    others = {part["setting"]["torch"] for part in parts.values()}
    others.discard(parts["time"]["setting"]["torch"])
    if others:
        setting += f" (the other tables earlier, with torch {', '.join(sorted(others))})"
    text = TEXT.format(
        setting=setting,
        noise=_noise(rows["time"]),
        noop=_noop(rows["overhead"]),
        time=times([row for row in rows["time"] if row["contender"] not in (FORWARD, TRACED)]),
        targets=table(
            rows["targets"], {"subject": "model", "contender": "method", "ratio": "ratio"}
        ),
        overhead=table(
            sorted(rows["overhead"], key=lambda row: float(row["forward"])),
            {
                "subject": "model",
                "batch_size": "batch",
                "forward": "forward (s)",
                "noop": "under a mode that does nothing",
                "ratio": "under the trace",
            },
        ),
        extremes=table(
            rows["extremes"], {"weights": "parameters", "factor": "factor", "ratio": "ratio"}
        ),
        memory=table(rows["memory"], _MEMORY),
    )
    if LONG_RESULTS.exists():
        long = json.loads(LONG_RESULTS.read_text(encoding="utf-8"))["rows"]
        text += LONG.format(long=table(long, _MEMORY | {"seconds": "s"}))
    if CAPTURED_RESULTS.exists():
        part = json.loads(CAPTURED_RESULTS.read_text(encoding="utf-8"))
        text += CAPTURED.format(**part["setting"], captured=table(part["rows"], _CAPTURED))
    if LXT_RESULTS.exists():
        part = json.loads(LXT_RESULTS.read_text(encoding="utf-8"))
        text += BESIDE_LXT.format(**part["setting"], times=times(part["rows"]))
    (DOCS / "cost.md").write_text(text, encoding="utf-8")
    shutil.copy(RESULTS / "time_cpu_float32.png", DOCS / "images" / "cost.png")


_CAPTURED = {
    "subject": "model",
    "contender": "method",
    "eager": "eager",
    "captured": "captured",
    "compiled": "compiled",
    "nodes": "nodes",
    "capture": "to capture (s)",
    "compile": "to compile (s)",
}
_MEMORY = {"subject": "model", "contender": "method", "mebibytes": "MiB", "ratio": "ratio"}


def _noise(rows: Sequence[dict[str, Any]]) -> str:
    ratios = [row["ratio"] for row in rows if row["contender"] == "Captum InputXGradient"]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _noop(rows: Sequence[dict[str, Any]]) -> str:
    smallest = min(rows, key=lambda row: float(row["forward"]))
    share = (smallest["noop"] - 1) * 100
    return f"a mode that does nothing already adds {share:.0f} % there."


if __name__ == "__main__":
    main()
