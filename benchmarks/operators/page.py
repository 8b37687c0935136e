"""What became of the operators, as a page of the documentation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import torch

from benchmarks.operators.database import LEFT_OUT
from benchmarks.operators.verdicts import PASSES, Verdict

Row = Mapping[str, Verdict]

HEAD = """# Operators

How each method handles the operators in PyTorch's own tests: the {count} operators in its
database that take floating point numbers and have a derivative (torch {torch}). To regenerate
this page, run `python -m benchmarks.operators` in the root of the repository. Each operator is run
on up to three of its samples, once with only its first operand explained and once with all of them.
One of the samples is also run in every other notation in torch: under other names, as a
method, in place, and with NumPy's argument names.

Checks:

- *Trace*: the trace changes neither the output nor the gradient.
- *Relevance* (`TransformerAttribution`): the relevance of the operands adds up to that of the
  output.
- *Token flow* (`GenericAttentionRelevance`, `AttentionRollout` and others): the shares of the
  operands add up to the output's. An entry made from several operands gives its whole share to each
  of them.
- `ConservativeLRP` and `AttnLRP`: the relevance is gradient x input.

How to read the table:

- ✓: right in all samples.
- ✓ and a letter: right, but constants take a share, such as masked entries or a bias. The letters
  are explained below the table.
- rule: the method deliberately changes the gradient of this operator. If the operator has only one
  operand, its relevance adds up to the score (except for entries that are zero or masked).
- A number in brackets: refused with an error; the reasons are listed below. After a ✓, only some
  samples are refused.
- ✗: wrong; listed at the end.

"""
_KINDS = {
    "right": "✓",
    "taken": "✓, constants take a share",
    "by rule": "rule",
    "refused": "refused",
    "wrong": "✗",
}


def page(rows: Mapping[str, Row]) -> str:
    """The whole page."""
    takers: list[str] = []
    refusals: list[str] = []
    lines = [_line("operator", *PASSES), _line("---", *[":-:"] * len(PASSES))]
    for name, row in rows.items():
        cells = [_cell(row[what], takers, refusals) for what in PASSES]
        lines.append(_line(f"`{name}`", *cells))
    parts = [
        HEAD.format(count=len(rows), torch=torch.__version__.split("+")[0]),
        *_summary(rows),
        "\n## Operator by operator\n\n",
        "\n".join(lines),
        "\n",
    ]
    for title, texts in (
        ("What constants take", [f"- {_letter(i)}: {taker}.\n" for i, taker in enumerate(takers)]),
        ("Refused", [f"{i}. {refusal}\n" for i, refusal in enumerate(refusals, 1)]),
        ("Wrong", list(_wrong(rows))),
        ("Left out", [f"- `{name}`: {reason}.\n" for name, reason in LEFT_OUT.items()]),
    ):
        if texts:
            parts += [f"\n## {title}\n\n", *texts]
    return "".join(parts)


def _summary(rows: Mapping[str, Row]) -> list[str]:
    counts = {what: Counter(row[what].kind for row in rows.values()) for what in PASSES}
    lines = [_line("operators", *_KINDS.values()), _line("---", *["--:"] * len(_KINDS))]
    lines += [_line(what, *(str(c[kind]) for kind in _KINDS)) for what, c in counts.items()]
    return ["\n".join(lines), "\n"]


def _cell(verdict: Verdict, takers: list[str], refusals: list[str]) -> str:
    if verdict.kind == "wrong":
        return "✗"
    marks = {"refused": "", "by rule": "rule"}
    cells = [marks.get(verdict.kind, "✓")]
    cells += [_letter(_place(t, takers)) for t in verdict.reasons.get("taken", [])]
    reasons = dict.fromkeys(map(_general, verdict.reasons.get("refused", [])))
    cells += [f"[{_place(reason, refusals) + 1}]" for reason in reasons]
    return " ".join(filter(None, cells))


def _place(text: str, texts: list[str]) -> int:
    """The place of a text among those that were met already, to which it is added if it is new."""
    if text not in texts:
        texts.append(text)
    return texts.index(text)


def _letter(place: int) -> str:
    return chr(ord("a") + place)


def _general(reason: str) -> str:
    """A refusal without the names and shapes of one operator, and without the advice."""
    reason = re.sub(r"\s*ConservativeLRP needs no rules .*", "", reason)
    reason = re.sub(r",? on tensors of shapes \[[^\]]*\],?", "", reason)
    reason = re.sub(r" of shape \([^)]*\)", "", reason)
    reason = re.sub(r"straight_through\(torch\.\w+\)", "straight_through(...)", reason)
    reason = re.sub(r"autograd calls it \w+", "autograd has a name for it", reason)
    return re.sub(r"^(There is no rule for )?`[^`]*`", r"\1`...`", reason)


def _wrong(rows: Mapping[str, Row]) -> list[str]:
    """What is wrong first, of each operator and pass; `--only` shows all."""
    found = []
    for row in rows.values():
        for what in PASSES:
            for case, why in list(row[what].wrong.items())[:1]:
                found.append(f"- {case}, {what}: {why}.\n")
    return found


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def differences(new: str, old: str) -> list[str]:
    """Which verdicts of a new page are wrong, or not those of an old page."""
    before = _cells(old)
    return [
        f"{operator}, {what}: {now}, was {was}"
        for operator, cells in _cells(new).items()
        for what, now, was in zip(
            PASSES, cells, before.get(operator, ["missing"] * len(PASSES)), strict=True
        )
        if _mark(now) != _mark(was) or now == "✗"
    ]


def _cells(text: str) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {operator.strip("`"): cells for operator, *cells in rows}


def _mark(cell: str) -> str:
    """A cell without the places of its reasons in the lists below."""
    return re.sub(
        r"\[\d+\]( \[\d+\])*", "refused", re.sub(r"(?<=✓) [a-z]( [a-z])*", " share", cell)
    )
