"""Captum's progress bars."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from captum._utils.progress import progress


@contextmanager
def progress_of(what: object, steps: int, *, show: bool) -> Iterator[Callable[[], object]]:
    """Shows a progress bar as Captum's methods do.

    Args:
        what: the method or explainer that loops.
        steps: the number of steps.
        show: whether to show the bar.

    Yields:
        A function to call after each step.
    """
    if not show:
        yield lambda: None
        return
    with closing(progress(desc=f"{type(what).__name__} attribution", total=steps)) as bar:
        bar.update(0)
        yield bar.update
