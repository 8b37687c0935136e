"""How Sphinx builds the site: ``sphinx-build -c docs . <output>``, from the repository's root.

The root is the source directory, so that links between ``docs/``, ``tutorials/``, `README.md` and
`CONTRIBUTING.md` are the same in the repository and on the site.
"""

import gc
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from sphinx.application import Sphinx

from captum_transformer import __version__

project = "captum_transformer"
author = "captum_transformer contributors"
copyright = author  # noqa: A001 - Sphinx's name
version = release = __version__

root_doc = "docs/index"
include_patterns = [
    "docs/**", "tutorials/*",
    "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md",
]  # fmt: skip
exclude_patterns = [
    ".*", "**/.*", "**/__pycache__",
    "docs/**/*.py", "docs/*.py", "docs/_*", "tutorials/demo_app.py", "tutorials/quickstart.py",
]  # fmt: skip
extensions = [
    "drawn_formulas",
    "inline_svg",
    "myst_nb",
    "notebooks",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]

# Names in docstrings: `AttributionMonitor` becomes a link, `(samples, tokens)` stays as it is.
default_role = "py:obj"
nitpicky = True
# Whatever isn't ours has no page to link to: nothing is fetched while the site is built.
nitpick_ignore_regex = [
    (r"py:obj", r".*"),
    (r"py:.*", r"(?!captum_transformer|lightning_callbacks).*"),
    # Of ours, what signatures and bases name that is not public: it lives in a module of a package.
    (r"py:.*", r"captum_transformer\.(attr|calling|rules|trace)\.\w+(\.\w+)+"),
    (r"py:.*", r"captum_transformer\.extend\.(Parameters|Result)"),
    (r"py:.*", r"lightning_callbacks\.[a-z_]+(\.\w+)+"),
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Reference"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Tutorials are executed while the site is built, and an error in one is an error of the build.
nb_custom_formats = {".py": "notebooks.read"}
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "light_css_variables": {"color-brand-primary": "#7a3e9d", "color-brand-content": "#6b3fa0"},
    "dark_css_variables": {"color-brand-primary": "#c9a3e6", "color-brand-content": "#c9a3e6"},
}


def setup(app: Sphinx) -> None:
    # Next to nothing of what is imported and read is garbage, and looking through it again and
    # again would take a third of the build.
    gc.disable()
    app.connect("env-updated", _collect)


def _collect(*_: object) -> None:
    gc.freeze()
    gc.enable()
