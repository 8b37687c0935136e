"""Puts the results into docs/study.md, between its words, and keeps them in benchmarks/results."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from benchmarks.study.methods import RANDOM
from benchmarks.study.tables import ARROWS, Record, table

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = Path("docs/study.md"), Path("benchmarks/results/study")
IMAGES = Path("docs/images/study")
# One question of each task that says most about what a method is good for.
HEADLINES = [
    ("vision", "perturbation", "predicted, positive"),
    ("vision", "perturbation", "predicted, negative"),
    ("vision", "segmentation", "mIoU"),
    ("vision", "localisation", "energy inside"),
    ("mosaics", "grid pointing game", "grid pointing game"),
    ("digits-class-token", "grid pointing game", "share in the right cell"),
    ("digits-mean-pooling", "grid pointing game", "share in the right cell"),
    ("digits-attention-pooling", "grid pointing game", "share in the right cell"),
    ("digits-registers", "grid pointing game", "share in the right cell"),
    ("digits-swin", "grid pointing game", "share in the right cell"),
    ("clothing", "segmentation", "mIoU"),
    ("clothing", "localisation", "energy inside"),
    ("sentiment", "activation", "AUAC"),
    ("sentiment", "activation", "AU-MSE"),
    ("sentiment", "labels", "words"),
    ("sentiment-last-token", "activation", "AUAC"),
    ("sentiment-last-token", "labels", "words"),
    ("reviews", "rationales", "average precision"),
    ("lookup", "answer", "answer, right token has most"),
    ("lookup", "contrast", "contrast, right token has most"),
    ("agreement", "agreement", "subject has most"),
    ("similarity", "pairs of words", "the names have most"),
]


def publish(records: list[Record], figures: list[Path], root: Path = ROOT) -> None:
    """Fills the page's blocks, and keeps figures and results beside it.

    What stands there of tasks that are not among the records is kept.
    """
    named = {record["name"]: record for record in records}
    blocks = {name: section(record) for name, record in named.items()}
    files = sorted((root / RESULTS).glob("*.json"))
    known = {path.stem: restored(json.loads(path.read_text(encoding="utf-8"))) for path in files}
    known |= {name: restored(kept(record)) for name, record in named.items()}
    known = dict(sorted(known.items()))
    blocks["headlines"] = headlines(known)
    blocks["published"] = "\n\n".join(
        comparison(name, score, column["published"])
        for name, record in known.items()
        for metric in record["metrics"].values()
        for score, column in metric["scores"].items()
        if "published" in column
    )
    page = root / PAGE
    page.write_text(filled(page.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    for folder in (root / RESULTS, root / IMAGES):
        folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        shutil.copyfile(figure, root / IMAGES / figure.name)
    for name, record in named.items():
        (root / RESULTS / f"{name}.json").write_text(
            json.dumps(kept(record), indent=1) + "\n", encoding="utf-8"
        )


def filled(text: str, blocks: dict[str, str]) -> str:
    """Replaces what is between ``<!-- name -->`` and ``<!-- end -->``."""
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{PAGE} must have one place for {name!r}: <!-- {name} -->.")
        text = pattern.sub(lambda found, block=block: found[1] + block + found[2], text)
    return text


def section(record: Record) -> str:
    """The facts and tables of a task."""
    facts = "\n".join(f"- *{name}*: {fact}" for name, fact in record["facts"].items())
    tables = [table(metric, entry["scores"]) for metric, entry in record["metrics"].items()]
    return "\n\n".join([facts, *tables])


def headlines(records: dict[str, Record]) -> str:
    """Who is best at what, and who can't be told from the best or from chance."""
    lines = ["| task | score | best | as good | chance | no better |", "|---|---|---|---|--:|---|"]
    for task, metric, score in HEADLINES:
        if task not in records:
            continue
        column = records[task]["metrics"][metric]["scores"][score]
        rows = column["methods"]
        sign = 1 if column["better"] == "low" else -1
        order = sorted(rows, key=lambda method: sign * rows[method]["value"])
        best, *others = order
        good = [method for method in others if rows[method]["as_good_as_best"]]
        bad = [method for method in order if rows[method]["beats_chance"] is False]
        cells = [
            task,
            f"{score} {ARROWS[column['better']]}",
            f"{best} {rounded(rows[best]['value'])}",
            "; ".join(good) or "-",
            rounded(rows[RANDOM]["value"]),
            "; ".join(bad) or "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison(task: str, score: str, published: dict[str, Any]) -> str:
    """A paper's column beside ours, in the paper's order."""
    rank = published["rank_correlation"]
    rows = sorted(published["rows"], key=lambda row: row[1])
    lines = [
        (
            f"{published['source']}, and {task}, {score}, here. Rank correlation of both columns: "
            f"**{rank['value']:.2f}** [{rank['low']:.2f}, {rank['high']:.2f}]."
        ),
        "",
        "| method | paper | here |",
        "|---|--:|--:|",
        *(f"| {method} | {theirs:.3g} | {rounded(ours)} |" for method, theirs, ours in rows),
    ]
    return "\n".join(lines)


def kept(record: Record) -> Record:
    """A record without the points of scatters and curves, its figures rounded."""
    metrics = {name: entry["scores"] for name, entry in record["metrics"].items()}
    text = json.dumps(record | {"metrics": metrics})
    shortened: Record = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.4g}"))
    return shortened


def restored(record: Record) -> Record:
    """A kept record in the form that a measured one has."""
    metrics = {name: {"scores": scores} for name, scores in record["metrics"].items()}
    return record | {"metrics": metrics}


def rounded(value: float) -> str:
    """Three digits."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
