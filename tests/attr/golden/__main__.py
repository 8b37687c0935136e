"""Prints case, tensor, what computes it and its largest relative error as a Markdown table."""

import torch

from tests.attr.golden import GOLDEN, deviation


def print_table() -> None:
    torch.set_num_threads(1)
    rows = [("case", "expected tensor", "computed by", "largest relative error")]
    for golden in GOLDEN:
        worst = max(deviation(golden, attention) for attention in golden.attentions)
        label = getattr(golden.compute, "__name__", None) or str(golden.compute)
        rows.append((golden.case, golden.key, label, f"{worst:.1e}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    rows.insert(1, tuple("-" * width for width in widths))
    for row in rows:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")  # noqa: T201


if __name__ == "__main__":
    print_table()
