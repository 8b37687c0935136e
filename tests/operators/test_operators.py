"""Torch's operators under the trace are right, refused, or listed as deviations."""

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.operators.database import LEFT_OUT, OPERATORS, cases
from benchmarks.operators.page import differences, page
from benchmarks.operators.verdicts import PASSES, Outcome, Verdict, outcomes, verdicts
from captum_transformer.rules import relevance
from captum_transformer.rules.relevance.rule import Entry
from captum_transformer.trace.kinds import Kind

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
# The passes that are wrong today, by operator. A mend has to take them out; nothing may come in.
KNOWN = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of rare arguments
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_right_or_refused(name):
    assert cases(name), "no sample of it can be explained: say so in `LEFT_OUT`"
    wrong = {what: found.wrong for what, found in verdicts(name).items() if found.wrong}
    assert list(wrong) == KNOWN.get(name, []), wrong


def test_known_deviations_are_of_existing_operators():
    assert KNOWN.keys() <= OPERATORS.keys()


def test_the_database_is_as_large_as_torchs():
    assert len(OPERATORS) >= 500
    assert not OPERATORS.keys() & LEFT_OUT.keys()
    assert sum(len(cases(name)) for name in ("add", "softmax", "cat")) >= 12


def test_a_leak_is_seen(monkeypatch):
    rule = relevance.TABLE.entries[Kind.SOFTMAX].rule

    def leaking(operation, incoming):
        return [share / 2 for share in rule(operation, incoming)]

    leaky = relevance.TABLE | {Kind.SOFTMAX: Entry(leaking)}
    monkeypatch.setattr(relevance, "TABLE", leaky)
    assert outcomes(cases("sin")[0])["relevance"].kind == "right"
    seen = outcomes(cases("softmax")[0])["relevance"]
    assert (seen.kind, seen.why) == ("wrong", "hands on 0.5000, and owns up to 0.0000")


def test_gradients_by_rule_are_distinguished_from_autograd():
    case = cases("sin")[0]
    assert outcomes(case)["ConservativeLRP"].kind == "right"
    assert outcomes(case)["AttnLRP"].kind == "by rule"


@pytest.mark.skipif(
    f"(torch {torch.__version__.split('+')[0]})" not in PAGE, reason="the page is of another torch"
)
def test_the_page_has_every_operator():
    assert re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE) == list(OPERATORS)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of rare arguments
def test_reasons_on_the_page_are_those_of_all_operators():
    text = page({name: verdicts(name) for name in ("atan2", "xlogy", "ceil", "floor")})
    reasons = re.findall(r"^\d+\. (.*)", text, re.MULTILINE)
    assert [reason.split(",")[0] for reason in reasons] == [
        "`...` is not in the table of operations",
        "`...` is a step function: its derivative is zero",
    ]


def test_pages_are_compared():
    def row(**verdicts):
        return {"add": {what: verdicts.get(what, _right()) for what in PASSES}}

    right, refused = row(), row(relevance=_of("refused", "`add` on tensors of shapes [(2,)]: why."))
    wrong = row(AttnLRP=_of("wrong", "hands on 0.5"))
    assert "| `add` | ✓ | [1] | ✓ | ✓ | ✓ |" in page(refused)
    assert "\n1. `...`: why.\n" in page(refused)
    assert "| relevance | 0 | 0 | 0 | 1 | 0 |" in page(refused)
    assert f"\n- {cases('add')[0]}, AttnLRP: hands on 0.5.\n" in page(wrong)
    assert differences(page(right), page(right)) == differences(page(refused), page(refused)) == []
    assert differences(page(refused), page(right)) == ["add, relevance: [1], was ✓"]
    assert differences(page(wrong), page(wrong)) == ["add, AttnLRP: ✗, was ✗"]


def _right():
    return _of("right")


def _of(kind, why=""):
    result = Verdict()
    result.add(cases("add")[0], Outcome(kind, why))
    return result
