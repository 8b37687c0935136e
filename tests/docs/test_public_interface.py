"""The public interface is pinned, and the reference and the policy agree with it."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests import public_interface

DOCS = Path(__file__).parents[2] / "docs"
# What the reference shows beside what is public: how the library's own methods are built.
INSIDE = ("captum_transformer.trace", "captum_transformer.rules", "captum_transformer.attr.")


def test_the_public_interface_is_the_pinned_one():
    difference = public_interface.difference(public_interface.lines())
    assert not difference, difference


def test_what_has_changed_is_said_and_what_to_do():
    now = public_interface.PINNED.read_text(encoding="utf-8").splitlines()
    (number,) = [i for i, line in enumerate(now) if line.startswith("captum_transformer.AttnLRP(")]
    now[number] = now[number].replace("gamma=None", "gamma=1.0", 1)
    said = public_interface.difference(now)
    assert re.search(r"^-captum_transformer\.AttnLRP\(.*\Wgamma=None", said, re.MULTILINE)
    assert re.search(r"^\+captum_transformer\.AttnLRP\(.*\Wgamma=1\.0", said, re.MULTILINE)
    assert public_interface.WRITE in said
    assert "stability.md" in said
    assert len(said.splitlines()) == 5


def documented():
    """The names that the pages of the reference show, by what they are."""
    shown = {}
    for page in DOCS.rglob("*.md"):
        directives = re.findall(
            r"^\.\. (?:auto|py:)(\w+):: (\S+)\n((?:   :.*\n)*)",
            page.read_text(encoding="utf-8"),
            re.M,
        )
        for kind, name, text in directives:
            options = dict(re.findall(r":([\w-]+):(.*)", text))
            if kind != "module":
                module, _, attribute = name.rpartition(".")
                shown[name] = getattr(import_module(module), attribute)
            elif "members" in options:
                module = import_module(name)
                names = options["members"].replace(",", " ").split() or module_names(module)
                left_out = options.get("exclude-members", "").replace(",", " ").split()
                shown |= {f"{name}.{n}": getattr(module, n) for n in names if n not in left_out}
    return shown


def module_names(module):
    own = [name for name, found in vars(module).items() if is_of(found, module)]
    return getattr(module, "__all__", own)


def is_of(found, module):
    return getattr(found, "__module__", None) == module.__name__ and found.__doc__


def test_all_that_is_public_is_in_the_reference():
    shown = list(documented().values())
    missing = [
        name
        for name, found in public_interface.public().items()
        if not any(found is each for each in shown)
    ]
    assert not missing, missing


def test_what_the_reference_shows_is_public_or_comes_from_what_is():
    public = list(public_interface.public().values())
    beside = [
        name
        for name, found in documented().items()
        if not any(found is each for each in public) and not name.startswith(INSIDE)
    ]
    # What public functions and classes return or take, by names that nobody has to import.
    assert {name.rpartition(".")[2] for name in beside} == {
        "ImageWriter", "LoadedCapture", "Progress", "RemainingSamples", "Samples", "TextWriter",
    }  # fmt: skip


def test_the_policy_names_the_modules():
    table = (DOCS / "stability.md").read_text(encoding="utf-8")
    table = table.split("## What is public")[1].split("\nThe options")[0]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    named = [name.strip("`") for row in rows for name in row.split(", ")]
    full = [f"captum_transformer{name}" if name.startswith(".") else name for name in named]
    assert sorted(full) == public_interface.MODULES


@pytest.mark.parametrize("module", public_interface.MODULES)
def test_names_of_a_module_are_there(module):
    found = import_module(module)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []
