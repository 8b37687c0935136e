"""Reads the first samples of a data set beside its loader, and leaves the data set as it was."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from captum_transformer.calling.contents import (
    ATOMS,
    CONTAINERS,
    Contents,
    is_object,
    parts_of,
)
from captum_transformer.calling.owners import reached_by
from captum_transformer.calling.random_states import go_back, stands_at
from lightning_callbacks.samples.fixed import FixedSamples

_LONGEST = 1000
"""How many items a container has at most that is searched: those of longer ones are data."""


def collect_first(
    fixed: FixedSamples, loader: Any, batch_size: int, forward: Callable[..., Any]
) -> None:
    """Collects the first samples of a loader's data set, in its order, without iterating it.

    Args:
        fixed: Gets the samples, and is complete afterwards.
        loader: The loader, whose collate function makes the batches.
        batch_size: The size of batches: texts are padded to the longest one in each.
        forward: The function that will be given the inputs.

    Raises:
        ValueError: If a batch can't be read.
    """
    with unread(loader.dataset, loader.collate_fn):
        items = islice(_in_order(loader.dataset), fixed.count)
        while batch := list(islice(items, batch_size)):
            fixed.collect(loader.collate_fn(batch), forward)
    fixed.complete = True


@contextmanager
def unread(*readers: Any) -> Iterator[None]:
    """Restores generators and attributes of what reads a data set.

    An augmentation or a collate function may draw from a generator of its own, which the training
    also draws from, or count its calls. What an iterator or a file has read isn't restored, nor are
    global variables.

    Args:
        readers: The data set and functions.

    Example:
        >>> import random
        >>> source = random.Random(0)
        >>> with unread({"noise": source}):
        ...     drawn = source.random()
        >>> source.random() == drawn
        True
    """
    held = list(_reached(readers))
    generators = [(one, state) for one in held if (state := stands_at(one)) is not None]
    contents = [Contents(one) for one in held if isinstance(one, CONTAINERS) or is_object(one)]
    try:
        yield
    finally:
        for content in contents:
            content.put_back()
        for generator, state in generators:
            go_back(generator, state)


def _reached(readers: tuple[Any, ...]) -> Iterator[Any]:
    """Yields objects, and all that they hold, except models and objects of Python's own classes."""
    pending, seen = list(readers), set(map(id, readers))
    for item in pending:
        if stands_at(item) is not None:
            yield item
            continue
        if inspect.isroutine(item) or isinstance(item, functools.partial):
            parts = [part for _, part in reached_by(item)]
        elif isinstance(item, (*CONTAINERS, tuple)) or (is_object(item) and not _is_pythons(item)):
            yield item
            parts = parts_of(item)
        else:
            continue
        for part in parts if len(parts) <= _LONGEST else ():
            if type(part) not in ATOMS and id(part) not in seen:
                seen.add(id(part))
                pending.append(part)


def _is_pythons(item: Any) -> bool:
    """Returns whether an object is of a class of Python's own, such as a file, lock or logger."""
    return type(item).__module__.partition(".")[0] in sys.stdlib_module_names


def _in_order(dataset: Any) -> Any:
    """Returns the samples of a data set; a data set with indices may not stop iterating itself."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[index] for index in range(len(dataset)))
    return iter(dataset)
