"""Explanations of samples and their metrics, independent of trainers."""
