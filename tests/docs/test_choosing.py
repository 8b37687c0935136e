"""The figures by which docs/choosing.md recommends a method are those of docs/study.md."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TASKS = (
    "digits-class-token digits-mean-pooling digits-attention-pooling digits-registers digits-swin "
    "lookup sentiment"
).split()
ROW = re.compile(r"^\| `?([\w, ]+?)`?(?: \(\w+\))? \| (.*) \|$", re.MULTILINE)


def measured(task: str) -> dict[str, str]:
    """The first score of each method in the task's first table of the study."""
    study = (DOCS / "study.md").read_text(encoding="utf-8")
    table = study.split(f"<!-- {task} -->")[1].split("<!-- end -->")[0].split("\n\n")[1]
    return {
        name: re.search(r"[\d.]+", scores)[0]
        for name, scores in ROW.findall(table)
        if "[" in scores
    }


@pytest.mark.parametrize("column", range(len(TASKS)), ids=TASKS)
def test_the_figures_are_those_of_the_study(column):
    page = (DOCS / "choosing.md").read_text(encoding="utf-8")
    quoted = {name: cells.split(" | ") for name, cells in ROW.findall(page)}
    study = measured(TASKS[column])
    compared = [name for name, cells in quoted.items() if name in study and cells[column].strip()]
    assert {"AttnLRP", "ConservativeLRP", "IntegratedGradients"} <= set(compared)
    assert {name: quoted[name][column].strip() for name in compared} == {
        name: study[name] for name in compared
    }
