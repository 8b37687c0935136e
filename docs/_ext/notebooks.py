"""Tutorials: Python files whose cells are marked by ``# %%``, executed side by side."""

from typing import Any

import jupytext
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def read(source: str) -> NotebookNode:
    """The notebook, with the language and kernel that the files themselves don't repeat."""
    notebook: NotebookNode = jupytext.reads(source, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return notebook


def _spread(_: Sphinx, __: BuildEnvironment, names: list[str]) -> None:
    """Sphinx gives each process a run of neighbours, and one would get all the notebooks."""
    notebooks = [name for name in names if name.startswith("tutorials/")]
    others = [name for name in names if name not in notebooks]
    step = len(others) // max(len(notebooks), 1) + 1
    for number, name in enumerate(notebooks):
        others.insert(number * step, name)
    names[:] = others


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-before-read-docs", _spread)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
