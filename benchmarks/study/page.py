"""Writes docs/study.md."""

from benchmarks.study.tables import Record


def publish(records: list[Record]) -> None:
    raise NotImplementedError(len(records))
