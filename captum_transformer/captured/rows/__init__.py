"""Graphs that compute only the rows that are read, and that are not zero."""

from captum_transformer.captured.rows.fewer import with_fewer_rows

__all__ = ["with_fewer_rows"]
