"""Torch's own operator database under the trace, and the page on it."""
