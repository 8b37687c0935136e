"""Explanations of samples, and what is measured of them; knows nothing of trainers' runs."""
