"""Checks what is in the wheel and the source distribution, and that the wheel alone works.

Run it as ``python .ci/check_distributions.py <folder>``.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ("captum_transformer", "lightning_callbacks")
# All that is at the top of the source distribution.
SOURCES = {
    *PACKAGES,
    *".ci .github benchmarks docs tests tutorials .gitignore CITATION.cff LICENSE PKG-INFO".split(),
    *"CHANGELOG.md CODE_OF_CONDUCT.md CONTRIBUTING.md README.md SECURITY.md pyproject.toml".split(),
}
IMPORTED = """
import sys
sys.path.insert(0, sys.argv[1])
import captum_transformer, lightning_callbacks
for package in (captum_transformer, lightning_callbacks):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
    assert all(getattr(package, name) for name in package.__all__)
"""


def check_wheel(path: Path) -> None:
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        names = set(wheel.namelist())
        known = (*(f"{package}/" for package in PACKAGES), wheel_information(path))
        strange = {name for name in names if not name.startswith(known) or name.endswith(".pyc")}
        assert not strange, f"{path.name} has what it should not have: {sorted(strange)}"
        for package in PACKAGES:
            sources = {str(file) for file in Path(package).rglob("*.py")}
            missing = sources | {f"{package}/py.typed"}
            missing -= names
            assert not missing, f"{path.name} lacks {sorted(missing)}"
        (license_file,) = [name for name in names if name.endswith("/licenses/LICENSE")]
        assert wheel.read(license_file), f"{path.name} has an empty license"
        described = wheel.read(f"{wheel_information(path)}METADATA").decode()
        relative = re.findall(r"\]\((?![a-z]+:|#)[^)]+\)", described)
        assert not relative, f"{path.name} links to files that a package index lacks: {relative}"
        assert "## Use it" in described, f"{path.name} lacks the README"
        wheel.extractall(folder)
        # -I: the sources beside this script must not stand in for what the wheel has.
        subprocess.run([sys.executable, "-I", "-c", IMPORTED, folder], check=True)


def wheel_information(path: Path) -> str:
    name, version, *_ = path.stem.split("-")
    return f"{name}-{version}.dist-info/"


def check_source(path: Path) -> None:
    with tarfile.open(path) as source:
        top = {Path(name).parts[1] for name in source.getnames()}
    assert top >= SOURCES, f"{path.name} lacks {sorted(SOURCES - top)}"
    assert top <= SOURCES, f"{path.name} has what it should not have: {sorted(top - SOURCES)}"


def main() -> None:
    folder = Path(sys.argv[1])
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    check_wheel(wheel)
    check_source(source)


if __name__ == "__main__":
    main()
