"""The matrix as a page of the documentation."""

from __future__ import annotations

import re
from collections.abc import Sequence

import timm
import torch
import torchvision
import transformers
from packaging.version import Version

from benchmarks.model_matrix.checks import Row
from benchmarks.model_matrix.methods import METHODS

HEAD = """# Model matrix

What every method says of small random models of {count} families; written by
`python -m benchmarks.model_matrix` (in the repository's root), with torch {torch},
timm {timm}, Transformers {transformers} and torchvision {torchvision}.
[Is your model missing?](your_model.md)

✓: there is an explanation, and all of this holds.

- The model's output under the trace is what it is without, to 1e-6.
- Relevance is finite, not all zero, and the same for a sample in a batch as by itself (one of two
  samples for each method, the other one for the next).
- Two targets get maps that differ by a hundredth of the distance between their largest and smallest
  value (but for raw attention and rollout, which know no target, and full LRP, which hardly does).
- Fused and eager attention give the same for this sample, where the model has both, to 1e-5: some
  models take the softmax of the eager one in single precision.
- Single precision gives what double precision gives, to 1e-3.
- Parameters, buffers, gradients, training mode, hooks and the random state are left alone.
- All this to 1e-6 of the largest value; the methods that divide by sums of either sign (both
  columns of `TransformerAttribution`, and `PartialLRP`) to 1e-3. In single precision they may
  differ by more, but not by 32 times as much as when only weights are rounded; full LRP by 0.2.
- `ConservativeLRP`: without biases and curved activations relevance sums up to the score, to 1e-3,
  where the theory says so (units that multiply two signals, such as gates, are exempt).

A number in brackets: refused, for the reason below; ✓ with a letter: works, with the warning
below. ✗: a check failed; it is listed at the end.
*Calls*: attention calls among tokens, and (+) among channels. *Tokens*: of each input. *Attention*:
which tokens attend to which.

"""


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    reasons: list[str] = []
    warned: list[str] = []
    lines = [_line("family", "calls", "tokens", "attention", *map(_short, METHODS))]
    lines.append("|---|--:|--:|---|" + ":-:|" * len(METHODS))
    lines += [_row(row, reasons, warned) for row in rows]
    head = HEAD.format(
        count=len(rows),
        torch=_version(torch),
        timm=_version(timm),
        transformers=_version(transformers),
        torchvision=_version(torchvision),
    )
    parts = [head, "\n".join(lines), "\n"]
    if reasons:
        parts.append("\n## Refused\n\n")
        parts += [f"{i}. {reason}\n" for i, reason in enumerate(reasons, 1)]
    if warned:
        parts.append("\n## Warned\n\n")
        parts += [f"- {_letter(i)}: {warning}\n" for i, warning in enumerate(warned)]
    if failures := list(_failures(rows)):
        parts.append("\n## Failed\n\n")
        parts += [f"- {failure}\n" for failure in failures]
    return "".join(parts)


def _row(row: Row, reasons: list[str], warned: list[str]) -> str:
    tokens, channels = row.calls
    calls = f"{tokens} + {channels}" if channels else str(tokens)
    name = f"{row.family[0]} {row.family[1]}" + (" ✗" if row.failed else "")
    cells = []
    for verdict in row.verdicts.values():
        if verdict.refused is not None:
            cells.append(f"[{_place(verdict.refused, reasons) + 1}]")
        else:
            places = dict.fromkeys(_place(warning, warned) for warning in verdict.warned)
            letters = map(_letter, places)
            cells.append(" ".join(["✗" if verdict.failed else "✓", *letters]))
    return _line(name, calls, " + ".join(row.tokens) or "-", ", ".join(row.streams), *cells)


def _place(text: str, texts: list[str]) -> int:
    """The place of a text among those that were met already, to which it is added if it is new."""
    text = _general(text)
    if text not in texts:
        texts.append(text)
    return texts.index(text)


def _letter(place: int) -> str:
    return chr(ord("a") + place)


def _failures(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        name = " ".join(row.family)
        found += [f"{name}: {failure}." for failure in row.failed]
        methods: dict[str, list[str]] = {}
        for method, verdict in row.verdicts.items():
            for failure in verdict.failed:
                methods.setdefault(failure, []).append(method)
        found += [f"{name}, {', '.join(them)}: {what}." for what, them in methods.items()]
    return found


def _general(reason: str) -> str:
    """A text without the shapes, counts and places of one model, and without the advice."""
    reason = re.sub(r"^\d+ of \d+ attention calls", "Some attention calls", reason)
    reason = re.sub(r": (`\w+` on \[[^]]*\](, )?)+(\.\.\.)?\.", ".", reason)
    reason = re.sub(r",? on tensors of shapes \[.*?\](?=:)", "", reason)
    reason = re.sub(r" of shape \([^)]*\)", "", reason)
    reason = re.sub(r"attention call \d+ \([^)]*\)", "an attention call", reason)
    return re.sub(r"\s*ConservativeLRP needs no rules .*", "", reason)


def _short(method: str) -> str:
    """A column's head, with places where it may be broken."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", method)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _version(library: object) -> str:
    return str(getattr(library, "__version__", "")).split("+")[0]


def differences(new: str, old: str) -> list[str]:
    """Which families of a new page fail, or have other cells than on an old page.

    Where other libraries made the pages, verdicts count alone: not their reasons and warnings, nor
    calls, tokens and attention, for which these libraries may have other names.

    Args:
        new: a page, of all families or some.
        old: a page of all families.
    """
    before, missing = _said(old), dict[str, str]()
    texts = made_with(new) == made_with(old)
    return [
        f"{family}, {column}: {now}, was {was}"
        for family, cells in _said(new).items()
        for column, cell in cells.items()
        if texts or column in METHODS
        for now, was in [_pair(cell, before.get(family, missing).get(column, "missing"), texts)]
        if now != was or now == "failed"
    ]


def made_with(text: str) -> dict[str, Version]:
    """The libraries that made a page."""
    found = re.findall(r"(torch|timm|Transformers|torchvision) (\d[\d.]*\d)", text)
    return {library: Version(number) for library, number in found}


def _pair(now: str, was: str, texts: bool) -> tuple[str, ...]:
    return tuple(cell if texts else cell.split(":")[0] for cell in (now, was))


def _said(text: str) -> dict[str, dict[str, str]]:
    """What a page says of each family: by column, with reasons and warnings in words."""
    words = dict(re.findall(r"^(?:- )?(\w+)[.:] (.*)$", text, re.MULTILINE))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    said = {}
    for family, calls, tokens, attention, *cells in rows:
        if cells[-1][0] in _MARKS:
            # What is wrong with the forward pass itself is wrong for all methods.
            name = family.removesuffix(" ✗")
            found = [_in_words(cell if name == family else "✗", words) for cell in cells]
            about = {"calls": calls, "tokens": tokens, "attention": attention}
            said[name] = {**about, **dict(zip(METHODS, found, strict=True))}
    return said


_MARKS = {"✓": "works", "[": "refused", "✗": "failed"}


def _in_words(cell: str, words: dict[str, str]) -> str:
    texts = [words[key] for key in re.findall(r"\w+", cell)]
    return ": ".join([_MARKS[cell[0]], *texts])
