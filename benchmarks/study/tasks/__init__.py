"""The tasks of the study, one per file."""
