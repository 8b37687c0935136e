"""Samples are read beside the loader, and what reads the data set is as before."""

import random
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from lightning_callbacks.samples.data_set import collect_first
from lightning_callbacks.samples.fixed import FixedSamples


class Augmenting(Dataset):
    """Draws from generators of its own, counts and caches."""

    def __init__(self):
        self.transforms = [Noise(), self.shift]
        self.source = np.random.default_rng(0)
        self.read = {"count": 0}
        self.cached = None
        self.lock = threading.Lock()

    def __len__(self):
        return 8

    def shift(self, x):
        return x + self.source.random()

    def __getitem__(self, index):
        self.read["count"] += 1
        self.cached = x = torch.full((2,), float(index), dtype=torch.float64)
        for transform in self.transforms:
            x = transform(x)
        return x, index


class Noise:
    def __init__(self):
        self.torch = torch.Generator().manual_seed(0)
        self.python = random.Random(0)

    def __call__(self, x):
        return x + torch.rand((), generator=self.torch) + self.python.random()


class Stream(IterableDataset):
    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        return iter([(torch.full((2,), float(n + self.epoch)), n) for n in range(4)])


def drawing_collate():
    generator = torch.Generator().manual_seed(0)

    def collate(items):
        x, labels = default_collate(items)
        return x + torch.rand(x.shape, generator=generator, dtype=x.dtype), labels

    return collate


def assert_reading_changes_nothing(make):
    (plain, watched), fixed = (make(), make()), FixedSamples(3)
    collect_first(fixed, watched, 2, lambda x: x)
    assert fixed.complete
    assert fixed.numbers == [[0, 1], [2]]
    for (x, labels), (other, expected) in zip(watched, plain, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(labels, expected)


def test_generators_and_counters_of_a_data_set():
    assert_reading_changes_nothing(lambda: DataLoader(Augmenting(), 2))
    assert_reading_changes_nothing(lambda: DataLoader(Subset(Augmenting(), range(1, 6)), 2))
    assert_reading_changes_nothing(lambda: DataLoader(Stream(), 2))


def test_generators_of_a_collate_function():
    assert_reading_changes_nothing(
        lambda: DataLoader([(torch.ones(2), 0)] * 5, 2, collate_fn=drawing_collate())
    )
