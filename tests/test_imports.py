"""Imports go one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room may import from those before it. Together with `or` stand those that must not know of
# each other.
ORDER = {
    "captum_transformer": [
        "errors or templates or visualization or account",
        "groups or calling",
        "trace",
        "rules or metrics",
        "captured",
        "attr",
        "description or extend",
        "explainers or chat",
        "cli or adapters",
    ],
    "lightning_callbacks": [
        "shared",
        "samples or loggers",
        "isolation or explanations",
        "monitor or data_sets",
        "attribution_monitor or attribution_trainer_callback",
        "explainer_module or relevance_writer",
    ],
}


def imports(package: str) -> Iterator[tuple[Path, list[str]]]:
    """Each file with the parts of a name that it imports from."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            yield from ((path.relative_to(ROOT), name.split(".")) for name in names)


@pytest.mark.parametrize("folder", [*ORDER, "benchmarks", "tests", "tutorials"])
def test_what_windows_lacks_is_imported_where_it_is_used(folder):
    """At the top of a file it would end the collection of all tests there."""
    lacking = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
    early = [
        f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and lacking & {getattr(node, "module", None), *(alias.name for alias in node.names)}
    ]
    assert not early, early


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package):
    level = {
        room: number for number, rooms in enumerate(ORDER[package]) for room in rooms.split(" or ")
    }
    there = {path.stem for path in (ROOT / package).iterdir() if (path / "__init__.py").is_file()}
    there |= {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert set(level) == there, "say in ORDER where a new file or room belongs"
    back = [
        f"{path} imports from {'.'.join(name)}"
        for path, name in imports(package)
        if name[0] == package
        and len(name) > 1
        and (own := path.with_suffix("").parts[1]) not in ("__init__", name[1])
        and level[name[1]] >= level[own]
    ]
    assert back == []


def test_methods_know_nothing_of_callbacks():
    assert not [path for path, name in imports("captum_transformer") if "lightning" in name[0]]
