"""Samples: how they are read from batches, kept, and brought to the model, and their classes."""
