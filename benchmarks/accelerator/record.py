"""Results on disk, unit by unit, so that what was measured is not measured again."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Record:
    """What has been measured in one setting.

    Args:
        path: a JSON file; what it holds of the same setting is kept.
        setting: the device, versions and whatever else makes figures comparable.
    """

    def __init__(self, path: Path, setting: Row) -> None:
        self.path = path
        self.setting = setting
        self.units: dict[str, list[Row]] = {}
        if path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier["setting"] == setting:
                self.units = earlier["units"]

    def __contains__(self, unit: str) -> bool:
        """Whether a unit has been measured; one that failed as a whole is tried again."""
        return unit in self.units and "error" not in self.units[unit][0]

    def add(self, unit: str, rows: list[Row]) -> None:
        """Writes what a unit has measured; an interruption leaves the old file or the new one."""
        self.units[unit] = rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"setting": self.setting, "units": self.units}, indent=1)
        beside = self.path.with_suffix(".partial")
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(self.path)

    def tables(self) -> str:
        """All units as Markdown, a part a table."""
        parts: dict[str, list[Row]] = {}
        for unit, rows in self.units.items():
            parts.setdefault(unit.split("/")[0], []).extend(rows)
        return "\n\n".join(f"### {part}\n\n{table(rows)}" for part, rows in parts.items())


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table; a column for each name that one of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        shown = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
