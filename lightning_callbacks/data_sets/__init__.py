"""Explanations of whole data sets on disk: shards, their index, the manifest, and the reader."""

from lightning_callbacks.data_sets.reader import ExplainedSample, RelevanceDataset

__all__ = ["ExplainedSample", "RelevanceDataset"]
