"""Draws the list of all pages, which stands on each page, once for all that have the same.

In a page of the site's own text its entry is marked. All others in a folder, such as those with
source code, have the same list, and there are more of them.
"""

import posixpath
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_drawn: dict[tuple[Any, ...], str] = {}


def _share(
    app: Sphinx, name: str, _: str, context: dict[str, Any], __: nodes.document | None
) -> None:
    if name in app.env.found_docs:
        return
    draw = context["toctree"]

    def toctree(**options: Any) -> str:
        key = posixpath.dirname(name), *sorted(options.items())
        if key not in _drawn:
            _drawn[key] = draw(**options)
        return _drawn[key]

    context["toctree"] = toctree


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", _share, priority=100)  # before the theme draws the list
    return {"parallel_read_safe": True, "parallel_write_safe": True}
