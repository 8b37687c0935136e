"""Reads a Python file whose cells are marked by ``# %%`` as a notebook."""

import jupytext
from nbformat import NotebookNode


def read(source: str) -> NotebookNode:
    """The notebook, with the language and kernel that the files themselves don't repeat."""
    notebook: NotebookNode = jupytext.reads(source, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return notebook
