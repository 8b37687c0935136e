"""README.md as a package index shows it, where links into the repository lead nowhere.

Hatchling calls this while it builds. Links to files become their text; pictures from files and
comments are left out.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_ELSEWHERE = r"(?![a-z]+:|#)"  # not an address with a scheme, nor a place on the page itself
_PICTURE = re.compile(rf"^!\[[^\]]*\]\({_ELSEWHERE}[^)]+\)\n+", re.MULTILINE)
_LINK = re.compile(rf"\[([^\]]+)\]\({_ELSEWHERE}[^)]+\)")
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)


def without_relative_links(readme: str) -> str:
    """Leaves out what only a copy of the repository can show."""
    return _LINK.sub(r"\1", _COMMENT.sub("", _PICTURE.sub("", readme)))


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = without_relative_links(readme)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
