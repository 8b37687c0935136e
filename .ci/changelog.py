"""The changelog's sections: what is new since the last release, and a dated one for each release.

``python .ci/changelog.py cut 0.2.0`` dates what is unreleased as version 0.2.0, and writes the
version to the package and the citation; ``python .ci/changelog.py notes 0.2.0`` prints what the
release says of itself, and fails if the version, the package and the changelog don't agree.
"""

import argparse
import datetime as dt
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNRELEASED = "## [Unreleased]"
HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
VERSIONS = {
    "captum_transformer/__init__.py": re.compile(r'(?<=^__version__ = ").*(?="$)', re.MULTILINE),
    "CITATION.cff": re.compile(r"(?<=^version: ).*$", re.MULTILINE),
}


def sections(text: str) -> dict[str, tuple[str | None, str]]:
    """The date and the text of each section, by its name."""
    found = list(HEADING.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {
        match["name"]: (match["date"], text[match.end() : end].strip())
        for match, end in zip(found, ends, strict=True)
    }


def notes(text: str, version: str) -> str:
    """What a release says of itself."""
    known = sections(text)
    if version not in known:
        raise SystemExit(f"CHANGELOG.md has no section [{version}], only {', '.join(known)}.")
    date, said = known[version]
    if date is None:
        raise SystemExit(f"The section [{version}] of CHANGELOG.md has no date.")
    return said


def cut(text: str, version: str, date: str) -> str:
    """The changelog with what is unreleased dated as a version."""
    known = sections(text)
    if version in known:
        raise SystemExit(f"CHANGELOG.md has a section [{version}] already.")
    if not known["Unreleased"][1]:
        raise SystemExit("Nothing is unreleased: CHANGELOG.md has nothing below [Unreleased].")
    return text.replace(UNRELEASED, f"{UNRELEASED}\n\n## [{version}] - {date}", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["cut", "notes"])
    parser.add_argument("version", help="such as 0.2.0")
    arguments = parser.parse_args()
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", arguments.version):
        raise SystemExit(f"{arguments.version} is no version such as 0.2.0 or 0.2.0rc1.")

    changelog = ROOT / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    if arguments.what == "cut":
        today = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
        written = {changelog: cut(text, arguments.version, today)}
        for name, version in VERSIONS.items():
            written[ROOT / name] = version.sub(
                arguments.version, (ROOT / name).read_text(encoding="utf-8"), count=1
            )
        for path, content in written.items():
            path.write_text(content, encoding="utf-8", newline="\n")
        return
    for name, version in VERSIONS.items():
        found = version.search((ROOT / name).read_text(encoding="utf-8"))
        if found is None or found[0] != arguments.version:
            raise SystemExit(f"{name} has version {found and found[0]}, not {arguments.version}.")
    print(notes(text, arguments.version))


if __name__ == "__main__":
    main()
