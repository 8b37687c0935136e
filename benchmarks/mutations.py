r"""Seeds faults in the code, one at a time, and counts how many of them the tests notice.

python -m benchmarks.mutations --out /tmp/mutations.jsonl --count 60
python -m benchmarks.mutations --out /tmp/mutations.jsonl --count 60 --quick   # the README's tests
python -m benchmarks.mutations --out /tmp/some.jsonl --code captum_transformer/captured/call.py \
    --tests tests/captured/test_changes.py -k refused   # a part of the code, and of the tests

With the tests that run each line, a mutation costs seconds instead of minutes:

COVERAGE_FILE=/tmp/lines.db python -m pytest -m "not slow" --cov=captum_transformer \
    --cov-context=test --cov-report=            # needs pytest-cov; takes several times as long
python -m benchmarks.mutations --out /tmp/mutations.jsonl --count 60 --quick --lines /tmp/lines.db

A run that was interrupted goes on where it stopped. What survives is either code that no test
looks at, or a change that makes no difference; which one it is has to be read.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
CODE = ("captum_transformer/trace", "captum_transformer/rules", "captum_transformer/attr")
TESTS = ("tests/rules", "tests/trace", "tests/flow", "tests/oracles", "tests/attr")
_OTHER: dict[type[Any], type[Any]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


class Mutation(NamedTuple):
    """One place in one file and what is put there."""

    path: str
    line: int
    last: int
    before: str
    after: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}: `{self.before}` -> `{self.after}`"


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What a node can be replaced by, so that the code still runs and means something else."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OTHER:
        yield ast.BinOp(node.left, _OTHER[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(_OTHER[type(node.op)](), node.values)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OTHER:
        yield ast.Compare(node.left, [_OTHER[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield _with_test(node, ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))


def _with_test(node: ast.AST, test: ast.expr) -> ast.AST:
    return type(node)(**{**dict(ast.iter_fields(node)), "test": test})


def mutations(path: Path) -> Iterator[Mutation]:
    """All mutations of a file, but for those in annotations and in the texts of errors."""
    source = path.read_text(encoding="utf-8")
    for node in _visited(ast.parse(source)):
        for other in replacements(node):
            if ast.dump(other) == ast.dump(node):
                continue
            place: Any = ast.copy_location(other, node)
            before = ast.get_source_segment(source, node) or ""
            lines = source.encode().splitlines(keepends=True)
            start = sum(map(len, lines[: place.lineno - 1])) + place.col_offset
            end = sum(map(len, lines[: place.end_lineno - 1])) + place.end_col_offset
            after = ast.unparse(ast.fix_missing_locations(other))
            if isinstance(other, ast.stmt):
                after = after.replace("\n", "\n" + " " * place.col_offset)
            elif isinstance(other, ast.expr):
                after = f"({after})"
            raw = source.encode()
            text = (raw[:start] + after.encode() + raw[end:]).decode()
            shown = [" ".join(one.split())[:60] for one in (before, after)]
            name, first, last = str(path.relative_to(ROOT)), place.lineno, place.end_lineno
            yield Mutation(name, first, last, shown[0], shown[1], text)


def _visited(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _visited(child)


def drawn(folders: list[str], count: int, seed: int) -> list[Mutation]:
    """As many mutations, each as likely as the others."""
    given = [ROOT / folder for folder in folders]
    files = [f for one in given for f in (sorted(one.rglob("*.py")) if one.is_dir() else [one])]
    found = [mutation for file in files for mutation in mutations(file)]
    return random.Random(seed).sample(found, min(count, len(found)))


def runs(mutation: Mutation, lines: Any, tests: list[str]) -> list[list[str]]:
    """What to run in turn: all tests, or those that run the mutation's lines, if this was recorded.

    Of these, one of each file comes first.
    """
    if lines is None:
        return [tests]
    known = lines.contexts_by_lineno(str(ROOT / mutation.path))
    places = range(mutation.line, mutation.last + 1)
    names = {name.partition("|")[0] for place in places for name in known.get(place, ())}
    if names == {""}:  # it runs when it is imported
        return [tests]
    some = {name.partition("::")[0]: name for name in sorted(names - {""})}
    return [sorted(part) for part in ({*some.values()}, names - {"", *some.values()}) if part]


def recorded(path: Path) -> Any:
    """What coverage.py has recorded, as its ``CoverageData``."""
    from coverage import CoverageData

    data = CoverageData(str(path))
    data.read()
    return data


def outcome(mutation: Mutation, tree: Path, parts: list[list[str]], limit: float) -> str:
    """``caught``, ``survived`` or ``hung``."""
    file = tree / mutation.path
    original = file.read_text(encoding="utf-8")
    file.write_text(mutation.text, encoding="utf-8")
    try:
        caught = any(failures(tree, part, limit) for part in parts)
        return "caught" if caught else "survived"
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        file.write_text(original, encoding="utf-8")


def selected(tests: list[str], names: str, quick: bool) -> list[str]:
    """The arguments for pytest; none is empty, since it would be lost in a file of arguments."""
    named = ["-k", names] if names else []
    return [*tests, *named, *(["-m", "not slow"] if quick else [])]


def failures(tree: Path, tests: list[str], limit: float) -> str:
    """The end of what tests say that fail, of the code as it is in a folder; empty if they pass."""
    (tree / "tests.txt").write_text("\n".join(tests), encoding="utf-8")
    options = ["-x", "-q", "-p", "no:cacheprovider", "@tests.txt"]
    command = [sys.executable, "-m", "pytest", *options]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        command,
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    if "ERROR: not found:" in run.stdout + run.stderr:
        sys.exit("The tests that were recorded are not those of the code: record them anew.")
    return (run.stdout + run.stderr)[-2000:] if run.returncode else ""


def copied(tree: Path) -> None:
    """The files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="one line for each mutation")
    parser.add_argument("--count", type=int, default=60, help="how many mutations are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code", nargs="+", default=list(CODE), metavar="PATH")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH")
    parser.add_argument("-k", dest="names", default="", help="only these tests, as for pytest")
    parser.add_argument("--quick", action="store_true", help="without the slow tests")
    parser.add_argument("--lines", type=Path, help="which tests run a line, by coverage.py")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for the tests")
    args = parser.parse_args()

    recording = None if args.lines is None else recorded(args.lines)
    tests = selected(args.tests, args.names, args.quick)
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    known = {found["mutation"]: found["outcome"] for found in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder, args.out.open("a", encoding="utf-8") as out:
        tree = Path(folder)
        copied(tree)
        if not known and args.lines is None and (said := failures(tree, tests, args.limit)):
            sys.exit(f"{said}\nThe tests fail without a mutation.")
        for mutation in drawn(args.code, args.count, args.seed):
            if mutation.name not in known:
                start = time.perf_counter()
                known[mutation.name] = outcome(
                    mutation, tree, runs(mutation, recording, tests), args.limit
                )
                found = {"mutation": mutation.name, "outcome": known[mutation.name]}
                print(json.dumps(found), file=out, flush=True)
                seconds = time.perf_counter() - start
                print(f"{known[mutation.name]} {seconds:5.0f} s  {mutation.name}", flush=True)
    noticed = sum(result != "survived" for result in known.values())
    print(f"{noticed} of {len(known)} mutations are noticed")


if __name__ == "__main__":
    main()
