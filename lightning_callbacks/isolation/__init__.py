"""Runs a model as during training, and leaves it unchanged."""
