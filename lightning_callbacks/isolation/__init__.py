"""A model runs as it does in its training, and is left as it was."""
