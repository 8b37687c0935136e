"""Checks that all links of the built site lead somewhere inside it: files and anchors.

Run it as ``python docs/check_links.py <site>``. Links to other sites are not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, and what it links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.add(value)


def dead_links(site: Path) -> list[str]:
    """The links that lead nowhere, as ``page: link``."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")
    }
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            # What Sphinx's pages of source code link back to is named after the file; what is
            # documented under the package's name has another anchor on the same page.
            if parts.scheme or parts.netloc or "_modules" in path.parts:
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(aim)
            exists = aim.is_file() if known is None else True
            anchor = unquote(parts.fragment)
            if not exists or (anchor and known is not None and anchor not in known.anchors):
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
    return dead


def main() -> int:
    site = Path(sys.argv[1])
    if not (site / "index.html").is_file():
        raise SystemExit(f"{site} has no index.html: build the site there first.")
    dead = dead_links(site)
    print("\n".join(dead) or f"all links inside {site} lead somewhere")
    return len(dead) > 0


if __name__ == "__main__":
    sys.exit(main())
