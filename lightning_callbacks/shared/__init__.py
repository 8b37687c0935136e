"""Shared code: the two packages of Lightning, files, and handling of failures."""
