"""The data sets, read from a folder."""
